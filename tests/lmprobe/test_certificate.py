"""The certificate says what holds of a model, and refuses what does not."""

import json

import numpy as np
import pytest
import torch
import transformers
from transformers import GPT2LMHeadModel
from zoo import ENDS, KNOWN, PROMPTS, VOCABULARY, S, opened, tiny, tokenizer

from lmprobe import capture, generate, read_out, wrap_model
from lmprobe.rounding import limit_of
from probecore import CertificateError

pytestmark = pytest.mark.transformers

FOUR = transformers.__version__.startswith("4.")
TUPLES_4 = (
    "gpt2 gpt_neo gptj gpt_neox opt bloom falcon mpt codegen gpt_bigcode granite stablelm phi persimmon nemotron "
    "gemma2 gemma3_text qwen2_moe opt_350m gemma3n_text"
).split()
TUPLES_5 = "gpt_neo gptj bloom falcon mpt codegen".split()


@pytest.mark.parametrize("name", KNOWN)
def test_every_architecture_is_certified(name):
    """Trap 1, 2, 3, 7, 13, 22: what is true of each layout is found, on both majors of transformers."""
    certificate = opened(name).certificate
    assert certificate.check("taps").gap == 0, certificate
    assert certificate.check("read-out").gap == 0, certificate
    assert certificate.holds("causal") and certificate.holds("left padding") and certificate.holds("right padding")
    if name in ("opt_350m", "gemma3n_text"):
        assert certificate.check("final norm").holds is None
    else:
        assert certificate.check("final norm").gap == 0
    start = "entry i is block i, no embedding entry" if name == "mamba" else "entry i+1 is block i"
    assert certificate.convention.startswith(start)
    assert certificate.copies == (2 if name == "gemma3n_text" else 1)
    assert all(bool(n) == (name in (TUPLES_4 if FOUR else TUPLES_5)) for n in certificate.returns)
    assert 0 <= certificate.noise_floor < limit_of(torch.float32)


def test_last_entry_of_hidden_states_is_named_for_what_it_is():
    ends = {name: opened(name).certificate.convention.split("; ")[1] for name in ("llama", "opt_350m", "gemma3n_text")}
    assert ends["llama"] == "the last entry is after the final norm"
    assert ends["opt_350m"].endswith("is neither the last block's output nor its norm")
    assert ends["gemma3n_text"] == "the last entry is the last block's output"


def test_shared_keys_and_values_are_found():
    """On transformers 4.57 Gemma 3n without a cache computes other states than generation does."""
    certificate = opened("gemma3n_text").certificate
    assert certificate.cached == (not certificate.holds("cache"))
    assert certificate.cached == FOUR
    if FOUR:
        with pytest.raises(CertificateError, match=r"must hold for 'cache'.*use_cache=True"):
            generate(opened("gemma3n_text"), PROMPTS, max_new_tokens=2, use_cache=False)


def test_text_and_record():
    certificate = opened("qwen2").certificate
    text = str(certificate)
    assert text.splitlines()[0] == "3 blocks at model.layers, width 64, final norm model.norm"
    assert "read-out       holds bit for bit" in text and max(map(len, text.splitlines())) <= 120
    record = json.loads(json.dumps(certificate.to_json(), allow_nan=False))
    assert {check["name"] for check in record["checks"]} >= {"taps", "final norm", "read-out", "left padding"}
    assert record["facts"]["attention"] == "sdpa" and record["facts"]["position_ids"] is True
    assert set(record["noise"]) == {"embed", "block 0", "block 1", "block 2"}


class Mute(GPT2LMHeadModel):
    """Gives no hidden states, as remote code made for another transformers does (trap 6)."""

    def forward(self, *args, output_hidden_states=None, **kwargs):
        return super().forward(*args, **kwargs)


class Deaf(GPT2LMHeadModel):
    """Takes no position ids although its positions are learned (trap 7)."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, return_dict=None,
                output_hidden_states=None, **kwargs):  # fmt: skip
        kwargs.pop("position_ids", None)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values,
                               use_cache=use_cache, output_hidden_states=output_hidden_states)  # fmt: skip


def of_class(cls):
    source = tiny("gpt2")
    model = cls(source.config)
    model.load_state_dict(source.state_dict())
    return wrap_model(model, tokenizer())


def test_a_model_that_shows_no_hidden_states_is_still_tapped():
    lm = of_class(Mute)
    assert lm.certificate.check("taps").holds is None and lm.certificate.convention == "not given by this model"
    assert lm.certificate.holds("read-out")
    ours, theirs = capture(lm, PROMPTS), capture(opened("gpt2"), PROMPTS)
    assert all(np.array_equal(ours.values(layer), theirs.values(layer)) for layer in lm.layers)


def test_a_model_that_cannot_be_padded_is_batched_by_length():
    """Left padding moves the positions of this model: that is found, and nothing is padded on the left.

    Rounding apart, the results are those of the same weights with position ids.
    """
    lm = of_class(Deaf)
    assert lm.certificate.check("left padding").holds is False and lm.certificate.holds("right padding")
    same_length = [*PROMPTS, "w8 w9 w10"]
    ours = generate(lm, same_length, max_new_tokens=4)
    theirs = generate(opened("gpt2"), same_length, max_new_tokens=4)
    assert ours.tokens == theirs.tokens
    np.testing.assert_allclose(ours.entropy, theirs.entropy, atol=1e-5)
    assert "one length" in ours.info["note"] and not theirs.info["note"]


def test_a_bidirectional_model_is_refused():
    """An encoder with a language-modelling head opens as a causal model, and its states see the future."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, **ENDS
    )
    lm = wrap_model(transformers.BertLMHeadModel(config), tokenizer())
    assert lm.certificate.check("causal").holds is False
    for refused in (capture, generate):
        with pytest.raises(CertificateError, match=r"must hold for 'causal'.*is_decoder"):
            refused(lm, PROMPTS)


def test_a_wrong_block_list_is_refused():
    """A list that is not the residual stream does not match hidden_states, nor give the logits."""
    model = tiny("llama")
    model.halves = torch.nn.ModuleList(layer.self_attn for layer in model.model.layers)
    lm = wrap_model(model, tokenizer(), blocks="halves")
    assert lm.certificate.check("taps").holds is False and lm.certificate.check("read-out").holds is False
    with pytest.raises(CertificateError, match=r"must hold for 'taps'.*name the block list"):
        capture(lm, PROMPTS)
    with pytest.raises(CertificateError, match=r"must hold for 'read-out'"):
        read_out(lm, torch.zeros(1, 64))


def test_a_wrong_final_norm_is_found():
    lm = wrap_model(tiny("llama"), tokenizer(), final_norm="model.layers.1.input_layernorm")
    assert lm.certificate.check("final norm").holds is False and lm.certificate.holds("taps")


def test_a_model_that_cannot_run_is_refused():
    model = tiny("llama")
    model.model.norm.forward = lambda hidden: hidden[..., :8]
    with pytest.raises(CertificateError, match=r"must run a forward pass of 16 tokens; it raised RuntimeError"):
        wrap_model(model, tokenizer())


def test_the_noise_floor_is_that_of_the_dtype():
    """Three blocks of width 64 add up a few hundred terms: tens of units in the last place at most."""
    floors = {}
    for dtype in ("float64", "float32", "bfloat16"):
        lm = wrap_model(tiny("llama").to(getattr(torch, dtype)), tokenizer())
        assert lm.certificate.holds("left padding") and lm.info["dtype"] == dtype
        floors[dtype] = lm.certificate.noise_floor
    eps = {dtype: torch.finfo(getattr(torch, dtype)).eps for dtype in floors}
    assert all(eps[dtype] <= floor <= min(0.1, 100 * eps[dtype]) for dtype, floor in floors.items())


def test_probes_are_in_a_small_vocabulary():
    config = transformers.LlamaConfig(**{**S, "vocab_size": 9})
    model = transformers.LlamaForCausalLM(config).eval()
    assert wrap_model(model, tokenizer()).certificate.holds("taps")
