"""Mixed logits against a slow reference without hook, cache or batch; refusals of models that share no potential."""

import copy

import numpy as np
import pytest
import torch
from zoo import KNOWN, PROMPTS, opened, tiny, tokenizer

from lmprobe import generate, score, wrap_model
from lmprobe.mixing import mix_logits, mixed, pair_models
from probecore.errors import InputError

pytestmark = pytest.mark.transformers
NAMES = [name for name in ("llama", "gpt2", "gemma2", "mixtral", "gpt_neox", "mamba", "lfm2") if name in KNOWN]


def moved(name):
    """Return the model of an architecture with every matrix moved a little."""
    model = copy.deepcopy(tiny(name))
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=rng))
    return wrap_model(model, tokenizer(), name=f"{name} moved")


def by_hand(pair, row, strength, steps):
    """Greedy decoding of one prompt: both models read the whole text again at every step."""
    tokens, entropies = [], []
    for _ in range(steps):
        ids = torch.tensor([[*row, *tokens]])
        with torch.no_grad():
            one, other = (lm.model(input_ids=ids).logits[0, -1].double() for lm in (pair.base, pair.aligned))
        log_p = torch.log_softmax((1 - strength) * one + strength * other, -1)
        entropies.append(float(-(log_p.exp() * log_p).sum()))
        tokens.append(int(log_p.argmax()))
        if tokens[-1] in pair.base.stop_ids:
            break
    return tokens, entropies


@pytest.mark.parametrize("name", NAMES)
def test_a_mixture_decodes_as_both_models_by_hand(name: str) -> None:
    """float32 against float64 sums of float32 logits: logits of size 10 differ by 1e-5, entropies by less than 1e-3."""
    pair = pair_models(opened(name), moved(name))
    rows = pair.format_all(PROMPTS, "raw", 8)
    for strength in (0.5, 1.5):
        with mixed(pair, strength) as lm:
            found = generate(lm, rows, max_new_tokens=6, layers=(), template="raw", use_cache=pair.use_cache)
        for i, row in enumerate(rows):
            tokens, entropies = by_hand(pair, row, strength, 6)
            assert list(found.tokens[i]) == tokens
            assert found.entropy[i, : len(tokens)] == pytest.approx(entropies, abs=1e-3)


def test_at_0_and_1_the_mixture_is_the_model_itself_bit_for_bit() -> None:
    pair = pair_models(opened("llama"), moved("llama"))
    rows = pair.format_all(PROMPTS, "raw", 8)
    for strength, lm in ((0.0, pair.base), (1.0, pair.aligned)):
        own, scored = generate(lm, rows, max_new_tokens=6, layers=()), score(lm, rows, [9, 10, 11])
        with mixed(pair, strength) as mixture:
            found = generate(mixture, rows, max_new_tokens=6, layers=())
            again = score(mixture, rows, [9, 10, 11])
        assert found.tokens == own.tokens and np.array_equal(found.entropy, own.entropy, equal_nan=True)
        assert np.array_equal(again.entropy, scored.entropy)


def test_the_base_is_left_as_it_was_also_after_an_error() -> None:
    pair = pair_models(opened("llama"), moved("llama"))
    before = score(pair.base, PROMPTS, [9]).entropy
    with pytest.raises(ZeroDivisionError), mixed(pair, 0.5):
        _ = 1 / 0
    assert np.array_equal(score(pair.base, PROMPTS, [9]).entropy, before)
    assert not pair.base.model._forward_hooks


def test_half_precision_is_mixed_in_float32() -> None:
    one, other = torch.tensor([100.0], dtype=torch.float16), torch.tensor([0.25], dtype=torch.float16)
    assert mix_logits(one, other, 0.5).dtype == torch.float32
    assert mix_logits(one, other, 0.0) is one


def test_models_without_a_common_vocabulary_are_refused_with_the_reason() -> None:
    words = tokenizer()
    words.add_tokens(["new"])
    other = wrap_model(tiny("llama"), words, name="other words")
    with pytest.raises(InputError, match=r"must share a tokenizer.*differ in 1 tokens"):
        pair_models(opened("llama"), other)
    wider = tiny("gpt2")
    wider.resize_token_embeddings(160)
    with pytest.raises(InputError, match="as many logits; gpt2 gives 128, wider 160"):
        pair_models(opened("gpt2"), wrap_model(wider, tokenizer(), name="wider"))


def test_both_end_where_either_ends() -> None:
    one, other = opened("llama"), moved("llama")
    object.__setattr__(other, "stop_ids", (5,))
    pair = pair_models(one, other)
    assert pair.base.stop_ids == pair.aligned.stop_ids == (2, 5)
