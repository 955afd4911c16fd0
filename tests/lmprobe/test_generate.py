"""Generation: tokens, entropies and states are those of transformers' own loop and of one pass over the whole text."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from zoo import KNOWN, PROMPTS, TEMPLATE, opened, tiny, tokenizer

from lmprobe import capture, generate, prompt_log_prob, score, wrap_model
from lmprobe.inputs import forward_arguments, pad
from probecore import InputError

pytestmark = pytest.mark.transformers

NEW = 6
CLOSE = 5e-5
"""As in test_capture, with another order of sums in the cache and NEW more steps; 1e-6 to 5e-5 measured (gemma4)."""


def endless(name):
    """Return the model with no end token, so that every row runs to the limit."""
    return replace(opened(name), stop_ids=())


def by_length(lm):
    """Return prompts in the order in which a batch holds them (longest first), so that layouts agree bit for bit."""
    return sorted(PROMPTS, key=lambda prompt: -len(lm.format(prompt)))


def theirs(lm, rows, **options):
    """Call transformers' generate, greedy and without end, on left-padded rows."""
    ids, mask = pad(rows, lm.pad_id, "left")
    arguments = {"attention_mask": mask} if lm.certificate.facts["attention_mask"] else {}
    old = lm.model.generation_config.eos_token_id
    lm.model.generation_config.eos_token_id = None
    try:
        return lm.model.generate(
            ids, max_new_tokens=NEW, do_sample=False, use_cache=True, pad_token_id=lm.pad_id,
            return_dict_in_generate=True, output_logits=True, **arguments, **options,
        )  # fmt: skip
    finally:
        lm.model.generation_config.eos_token_id = old


def flat(state):
    return torch.cat(list(state), dim=-1) if state.ndim == 4 else state


@pytest.mark.parametrize("name", KNOWN)
def test_token_for_token_and_bit_for_bit(name):
    """Traps 1, 3, 7: tokens, entropies and the states of all blocks but the last are transformers' own.

    The last entry of `hidden_states` is after the final norm (in Gemma 3n the raw block output), so the last block is
    left to the comparison with one full forward below. Reference entropies are computed from the raw logits in numpy.
    """
    lm = endless(name)
    prompts = by_length(lm)
    rows = lm.format_all(prompts)
    ours = generate(lm, prompts, max_new_tokens=NEW, step_layers="all")
    out = theirs(lm, rows, output_hidden_states=True)
    assert [list(t) for t in ours.tokens] == out.sequences[:, -NEW:].tolist()
    blocks = lm.layers[1:]
    skip = 0 if name == "mamba" else 1  # mamba's hidden_states have no embedding entry
    for t, states in enumerate(out.hidden_states):
        for layer, state in zip(blocks[:-1], states[skip:], strict=False):
            newest = flat(state)[:, -1].numpy()
            mine = ours.prompt_end[layer] if t == 0 else ours.states(layer)[:, t - 1]
            assert np.array_equal(mine, newest), (t, layer)
        logits = out.logits[t].double().numpy()
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        log_p = np.log(np.maximum(p, 1e-300))
        np.testing.assert_allclose(ours.entropy[:, t], -(p * log_p).sum(axis=1), atol=1e-12)
        np.testing.assert_allclose(ours.log_prob[:, t], log_p.max(axis=1), atol=1e-10)
        np.testing.assert_allclose(ours.top_prob[:, t], p.max(axis=1), atol=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_states_are_those_of_one_pass_over_the_finished_text(name):
    """Trap 18: every generated token has its state, the last one too, and the prompt's end as well."""
    lm = endless(name)
    ours = generate(lm, PROMPTS, max_new_tokens=NEW, step_layers="all")
    texts = [[*prompt, *new] for prompt, new in zip(ours.prompts, ours.tokens, strict=True)]
    whole = capture(lm, texts, at=lambda ids: range(len(ids) - NEW - 1, len(ids)), deterministic=True)
    for layer in lm.layers:
        states = whole.values(layer).reshape(len(PROMPTS), NEW + 1, -1)
        np.testing.assert_allclose(ours.prompt_end[layer], states[:, 0], atol=CLOSE, rtol=CLOSE)
        np.testing.assert_allclose(ours.states(layer), states[:, 1:], atol=CLOSE, rtol=CLOSE)
    for i, text in enumerate(texts):
        ids = torch.tensor([text])
        arguments = forward_arguments(lm.model, ids, torch.ones_like(ids), use_cache=lm.certificate.cached)
        with torch.no_grad():
            logits = lm.model(**arguments).logits[0, -NEW - 1 : -1].double().numpy()
        assert logits.argmax(axis=1).tolist() == list(ours.tokens[i])
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        np.testing.assert_allclose(ours.entropy[i], -(np.exp(log_p) * log_p).sum(axis=1), atol=CLOSE)


@pytest.mark.parametrize("name", KNOWN)
def test_batch_and_cache_change_nothing_but_rounding(name):
    """Traps 7, 17, 19: alone or in a left-padded batch, with or without a cache, the same text and the same states."""
    lm = opened(name)
    batch = generate(lm, PROMPTS, max_new_tokens=NEW, step_layers=[0, 2])
    others = [generate(lm, PROMPTS, max_new_tokens=NEW, step_layers=[0, 2], deterministic=True)]
    if lm.certificate.holds("cache"):
        others.append(generate(lm, PROMPTS, max_new_tokens=NEW, step_layers=[0, 2], use_cache=False))
    for other in others:
        assert other.tokens == batch.tokens
        np.testing.assert_allclose(other.entropy, batch.entropy, atol=CLOSE)
        for layer in ("block 0", "block 2"):
            np.testing.assert_allclose(other.states(layer), batch.states(layer), atol=CLOSE, rtol=CLOSE)
            np.testing.assert_allclose(other.prompt_end[layer], batch.prompt_end[layer], atol=CLOSE, rtol=CLOSE)


def test_a_row_ends_at_its_end_token_and_nothing_after_it_counts():
    """Values up to the end token are those of the endless run; whatever other rows do afterwards changes nothing."""
    lm = endless("llama")
    full = generate(lm, PROMPTS, max_new_tokens=12, step_layers="all")
    stop = full.tokens[1][3]
    ended = generate(replace(lm, stop_ids=(stop,)), PROMPTS, max_new_tokens=12, step_layers="all")
    for i, row in enumerate(full.tokens):
        n = row.index(stop) + 1 if stop in row else 12
        assert ended.tokens[i] == row[:n] and ended.lengths[i] == n and ended.finished[i] == (stop in row)
        np.testing.assert_allclose(ended.entropy[i, :n], full.entropy[i, :n], atol=CLOSE)
        assert np.isnan(ended.entropy[i, n:]).all() and np.isnan(ended.log_prob[i, n:]).all()
        assert ended.trajectory(i, "block 2").shape == (n, 64)
        np.testing.assert_allclose(ended.trajectory(i, "block 2"), full.states("block 2")[i, :n], atol=CLOSE)
        assert np.isnan(ended.states("block 2")[i, n:]).all()
        np.testing.assert_allclose(ended.mean_entropy()[i], full.entropy[i, :n].mean(), atol=CLOSE)
    assert ended.finished[1] and not ended.finished.all()


def test_all_rows_ended_ends_the_run():
    """With every first token an end token there is one step, and its state is there."""
    lm = endless("llama")
    firsts = {row[0] for row in generate(lm, PROMPTS, max_new_tokens=1).tokens}
    forwards = []
    handle = lm.model.register_forward_hook(lambda module, args, output: forwards.append(1))
    ended = generate(replace(lm, stop_ids=tuple(firsts)), PROMPTS, max_new_tokens=9, step_layers=[1], layers=())
    with_states, _ = len(forwards), forwards.clear()
    generate(replace(lm, stop_ids=tuple(firsts)), PROMPTS, max_new_tokens=9)
    handle.remove()
    assert ended.finished.all() and ended.lengths.tolist() == [1] * 4
    assert not np.isnan(ended.states("block 1")[:, 0]).any() and not ended.prompt_end
    assert (with_states, len(forwards)) == (2, 1)  # one more step only where the last token's state is wanted


def test_no_second_pass_over_the_text():
    """S tokens take one pass over the prompt and S - 1 steps of one token, and one more for the last token's state."""
    lm = endless("llama")
    chunks = []
    handle = lm.sites.blocks[0].register_forward_hook(
        lambda m, a, o: chunks.append((o[0] if m is None else a[0]).shape[1])
    )
    generate(lm, PROMPTS[:1], max_new_tokens=5, step_layers=[0])
    handle.remove()
    assert chunks == [4, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mamba", "opt_350m", "gemma3n_text", "qwen3_next"])
def test_a_forced_text_is_scored_alike_step_by_step_and_in_one_pass(name):
    """Teacher forcing through the cache (slow) and one right-padded pass (fast) are two ways to the same numbers."""
    lm = opened(name)
    text = "w4 w4 w30 w61 w2"
    steps = generate(lm, PROMPTS, forced=text, step_layers=[1])
    once = score(lm, PROMPTS, text)
    assert {row for row in steps.tokens} == {once.tokens} and once.tokens == (11, 11, 37, 68, 9)
    assert not steps.finished.any() and steps.info["decoding"] == "forced"
    np.testing.assert_allclose(steps.entropy, once.entropy, atol=CLOSE)
    np.testing.assert_allclose(steps.log_prob, once.log_prob, atol=5 * CLOSE)
    assert score(lm, PROMPTS, list(once.tokens)).tokens == once.tokens


def test_a_forced_end_token_does_not_end_the_row():
    lm = opened("llama")
    assert 2 in lm.stop_ids
    forced = generate(lm, PROMPTS, forced=[9, 2, 10], step_layers=[0])
    assert forced.lengths.tolist() == [3] * 4 and not np.isnan(forced.entropy).any()


def test_the_own_text_scored_again_gives_the_entropies_of_the_run():
    lm = endless("llama")
    run = generate(lm, PROMPTS[:1], max_new_tokens=5)
    again = score(lm, PROMPTS[:1], list(run.tokens[0]))
    np.testing.assert_allclose(again.entropy, run.entropy, atol=CLOSE)
    np.testing.assert_allclose(again.log_prob, run.log_prob, atol=CLOSE)


@pytest.mark.parametrize("kind", ["uniform", "one-hot", "planted"])
def test_known_entropies(kind):
    """A head that gives the logits log p whatever the state has entropy H(p) at every step: log V, 0, one between."""
    model = tiny("llama")
    head = model.lm_head = torch.nn.Linear(64, 128)
    p = np.ones(128) if kind == "uniform" else np.arange(128) == 9 if kind == "one-hot" else 0.9 ** np.arange(128)
    p = p / p.sum()
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.from_numpy(np.log(np.maximum(p, 1e-38))))
    lm = replace(wrap_model(model, tokenizer()), stop_ids=())
    expected = -(p * np.log(np.maximum(p, 1e-300))).sum()  # float32 logits: 1e-7 of at most 87
    np.testing.assert_allclose(generate(lm, PROMPTS, max_new_tokens=3).entropy, expected, atol=1e-5)
    scores = score(lm, PROMPTS, [9, 3])
    np.testing.assert_allclose(scores.entropy, expected, atol=1e-5)
    np.testing.assert_allclose(scores.log_prob, np.log(np.maximum(p, 1e-38))[[9, 3]] * np.ones((4, 1)), atol=1e-4)


def test_the_perplexity_of_a_prompt():
    """Against a plain loop over tokens; a prompt of one token has none."""
    lm = opened("gemma2")
    got = prompt_log_prob(lm, [*PROMPTS, [1]])
    for prompt, value in zip(PROMPTS, got[:-1], strict=True):
        row = lm.format(prompt)
        logs = []
        for k in range(1, len(row)):
            with torch.no_grad():
                logits = lm.model(torch.tensor([row[:k]])).logits[0, -1].double()
            logs.append(float(torch.log_softmax(logits, -1)[row[k]]))
        np.testing.assert_allclose(value, np.mean(logs), atol=CLOSE)
    assert np.isnan(got[-1])


def test_sampling_follows_the_distribution_and_the_seed():
    """800 draws of the first token against softmax(logits / T).

    Total variation between a sample of n and its distribution over k likely tokens is about sqrt(k / (2 pi n)) on
    average; with fewer than 40 likely tokens that is .09, and .25 is out of reach by chance.
    """
    lm = endless("llama")
    n = 800
    draws = generate(lm, [PROMPTS[0]] * n, max_new_tokens=1, temperature=0.7, layers=(), seed=3, batch_tokens=2000)
    with torch.no_grad():
        logits = lm.model(torch.tensor([lm.format(PROMPTS[0])])).logits[0, -1].double()
    p = torch.softmax(logits / 0.7, -1).numpy()
    seen = np.bincount([row[0] for row in draws.tokens], minlength=128) / n
    assert abs(seen - p).sum() / 2 < 0.25 and (seen > 0).sum() > 3
    np.testing.assert_allclose(
        draws.entropy, float(torch.distributions.Categorical(logits=logits).entropy()), atol=CLOSE
    )
    same = dict(max_new_tokens=5, temperature=1.0, layers=())
    first = generate(lm, PROMPTS, seed=1, **same)
    assert first.tokens == generate(lm, PROMPTS, seed=1, deterministic=True, **same).tokens  # whatever the batch
    assert first.tokens != generate(lm, PROMPTS, seed=2, **same).tokens
    assert first.info["decoding"] == "T = 1" and first.info["seed"] == 1


def test_a_checkpoints_own_decoding_is_not_applied_and_named():
    """Sampling, penalties and beams of the generation config change nothing, are listed, and are left as they were."""
    plain = generate(endless("llama"), PROMPTS, max_new_tokens=NEW)
    model = tiny("llama")
    asked = dict(do_sample=True, temperature=0.6, top_k=5, repetition_penalty=1.8, num_beams=3, eos_token_id=[2, 9])
    for key, value in asked.items():
        setattr(model.generation_config, key, value)
    before = model.generation_config.to_dict()
    lm = wrap_model(model, tokenizer())
    assert lm.stop_ids == (2, 9)
    ours = generate(replace(lm, stop_ids=()), PROMPTS, max_new_tokens=NEW)
    assert ours.tokens == plain.tokens and np.array_equal(ours.entropy, plain.entropy)
    assert model.generation_config.to_dict() == before
    del asked["eos_token_id"]
    assert ours.info["not applied"] == asked and not plain.info["not applied"]


def test_states_at_the_prompts_ends_are_activations():
    lm = opened("qwen3")
    run = generate(lm, PROMPTS, max_new_tokens=2)
    acts, captured = run.activations(names=list("abcd")), capture(lm, PROMPTS)
    assert acts.layers == lm.layers and acts.items == ("a", "b", "c", "d") and acts.n_groups == 4
    for layer in lm.layers:
        np.testing.assert_allclose(acts.values(layer), captured.values(layer), atol=CLOSE)
    with pytest.raises(InputError, match=r"no states of 'block 1' were kept; there are none"):
        run.states("block 1")
    with pytest.raises(InputError, match=r"generate with layers='all'"):
        generate(lm, PROMPTS, max_new_tokens=1, layers=()).activations()


def test_texts_are_decoded_and_templates_applied():
    model = tiny("llama")
    lm = wrap_model(model, tokenizer(TEMPLATE))
    run = generate(lm, ["w1 w2"], max_new_tokens=4, template="chat", system="w9")
    assert lm.tokenizer.decode(run.prompts[0]) == "<s> <system> w9 <user> w1 w2 <assistant>"
    assert run.texts == (lm.tokenizer.decode(run.tokens[0], skip_special_tokens=True),) and run.texts[0]
    assert run.info["template"] == "chat"


def test_memory_that_runs_out_half_way_leaves_nothing_behind():
    """The first attempt chooses other tokens and breaks off at its fourth step; its rows must not show through."""
    normal = replace(wrap_model(tiny("llama"), tokenizer()), stop_ids=())
    stop = generate(normal, PROMPTS, max_new_tokens=6).tokens[0][1]
    lm = replace(normal, stop_ids=(stop,))
    expected = generate(lm, PROMPTS, max_new_tokens=6, step_layers=[1])
    steps = []

    def other_tokens(module, args, output):
        return -output if output.shape[0] == 4 else output

    def short_of_memory(module, args, kwargs):
        steps.append(len(kwargs["input_ids"]))
        if steps.count(4) == 4 and steps[-1] == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handles = [
        lm.model.lm_head.register_forward_hook(other_tokens),
        lm.model.register_forward_pre_hook(short_of_memory, with_kwargs=True),
    ]
    got = generate(lm, PROMPTS, max_new_tokens=6, step_layers=[1])
    for handle in handles:
        handle.remove()
    assert steps[:4] == [4] * 4 and 4 not in steps[4:]
    assert got.tokens == expected.tokens and expected.lengths[0] < 3
    np.testing.assert_allclose(got.entropy, expected.entropy, atol=CLOSE)
    np.testing.assert_allclose(got.states("block 1"), expected.states("block 1"), atol=CLOSE)


def test_logits_that_are_no_numbers_are_refused():
    lm = wrap_model(tiny("llama"), tokenizer())
    handle = lm.model.lm_head.register_forward_hook(lambda module, args, output: output * float("nan"))
    for asked in (lambda: generate(lm, PROMPTS, max_new_tokens=2), lambda: score(lm, PROMPTS, "w1")):
        with pytest.raises(InputError, match=r"next-token logits must be numbers; those of prompt \d"):
            asked()
    handle.remove()


def test_hooks_are_removed_also_after_an_error():
    lm = wrap_model(tiny("llama"), tokenizer())
    count = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
    config = lm.model.generation_config
    handle = lm.sites.blocks[2].register_forward_hook(lambda module, args, output: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(lm, PROMPTS, max_new_tokens=2, step_layers="all")
    handle.remove()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()) == count
    assert lm.model.generation_config is config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens must be an int of at least 1; got 0"),
        (dict(temperature=0.0), "temperature must be above 0"),
        (dict(temperature=1.0, forced=[5]), "give either forced or temperature"),
        (dict(forced=""), "at least 1 token id"),
        (dict(forced=[128]), r"all in \[0, 128\); got \[128\]"),
        (dict(max_new_tokens=128), "must fit into the 128 tokens of llama; prompts 0, 1, 2, 3 have 4, 12, 3, 7"),
        (dict(layers="block 9"), "no layer block 9"),
        (dict(batch_tokens=0), "batch_tokens must be an int of at least 1"),
    ],
)
def test_what_cannot_be_done_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        generate(opened("llama"), PROMPTS, **wrong)
