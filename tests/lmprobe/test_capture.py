"""Captured states are those of transformers, at the tokens asked for, whatever the batch; and nothing stays behind."""

import gc
import weakref

import numpy as np
import pytest
import torch
from zoo import KNOWN, PROMPTS, opened, tiny, tokenizer

from lmprobe import capture, wrap_model
from lmprobe.inputs import forward_arguments, length_batches, pad, positions_of
from lmprobe.taps import tapped
from probecore import CertificateError, InputError, Label

pytestmark = pytest.mark.transformers

CLOSE = 2e-5
"""States of these models are of order 1 to 10 and one block adds up a few hundred float32 terms: 1e2 * 6e-8 * 10 is
6e-5 at the worst, 1e-6 to 5e-6 measured. A visible pad or a shifted position moves them by 0.1 and more."""


def reference(lm, prompt):
    """Return transformers' own hidden states of one prompt alone, by the known layout of the architecture."""
    ids = torch.tensor([lm.format(prompt)])
    arguments = dict(use_cache=lm.certificate.cached, output_hidden_states=True)
    with torch.no_grad():
        states = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments).hidden_states
    if states[0].ndim == 4:  # Gemma 3n: copies side by side
        states = [torch.cat(list(state), dim=-1) for state in states]
    return [state[0].numpy() for state in states]


@pytest.mark.parametrize("name", KNOWN)
def test_states_are_those_of_transformers_bit_for_bit(name):
    """Traps 1 and 2. One prompt at a time, tap and `output_hidden_states` are the same bits, all but the last entry.

    The last entry is after the final norm: the tap of the last block differs from it, and its norm equals it.
    """
    lm = opened(name)
    acts = capture(lm, PROMPTS, at="all", deterministic=True)
    values = {layer: acts.values(layer) for layer in acts.layers}
    blocks = [values[layer] for layer in acts.layers[1:]]
    start = 0
    for prompt in PROMPTS:
        states = reference(lm, prompt)
        rows = slice(start, start + len(states[0]))
        start = rows.stop
        shifted = name == "mamba"  # no embedding entry
        for block, state in zip(blocks[:-1], states[0 if shifted else 1 :], strict=False):
            assert np.array_equal(block[rows], state)
        if not shifted:
            assert np.array_equal(values["embed"][rows], states[0])
        if name == "gemma3n_text":
            assert np.array_equal(blocks[-1][rows], states[-1])
        elif name != "opt_350m":
            assert np.abs(blocks[-1][rows] - states[-1]).max() > 0.01
            with torch.no_grad():
                normed = lm.sites.norm(torch.from_numpy(blocks[-1][None, rows].copy()))[0].numpy()
            np.testing.assert_allclose(normed, states[-1], atol=1e-6)
    assert start == acts.n_items


@pytest.mark.parametrize("name", KNOWN)
def test_a_batch_changes_nothing_but_rounding(name):
    """Traps 7, 10 and 19: in a padded batch a prompt has the states it has alone."""
    lm = opened(name)
    alone, batch = (capture(lm, PROMPTS, at="all", deterministic=one) for one in (True, False))
    for layer in lm.layers:
        np.testing.assert_allclose(batch.values(layer), alone.values(layer), atol=CLOSE, rtol=CLOSE)


def test_positions_are_selectors_over_real_tokens():
    """Traps 8 and 26: first, last and means never touch padding, in a batch of unequal lengths."""
    lm = opened("llama")
    every = capture(lm, PROMPTS, at="all", layers="block 1").values("block 1")
    ends = np.cumsum([len(lm.format(prompt)) for prompt in PROMPTS])
    starts = np.concatenate([[0], ends[:-1]])
    parts = [every[a:b].astype(np.float64) for a, b in zip(starts, ends, strict=True)]
    expected = {
        "first": [part[0] for part in parts],
        "last": [part[-1] for part in parts],
        "mean": [part.mean(axis=0) for part in parts],
        "mean without first": [part[1:].mean(axis=0) for part in parts],
    }
    for at, rows in expected.items():
        got = capture(lm, PROMPTS, at=at, layers="block 1").values("block 1")
        np.testing.assert_allclose(got, np.asarray(rows), atol=CLOSE, err_msg=at)


def test_a_function_selects_positions():
    lm = opened("llama")
    acts = capture(lm, PROMPTS, at=lambda ids: [0, len(ids) - 1], layers=["embed"], names=["a", "b", "c", "d"])
    assert acts.items[:3] == ("a token 0", "a token 3", "b token 0") and acts.n_items == 8
    for wrong in ([], [4], [-1]):
        with pytest.raises(InputError, match=r"at least 1 position in \[0, 4\) of prompt 0"):
            capture(lm, PROMPTS[:1], at=lambda ids, wrong=wrong: wrong)


def test_labels_belong_to_prompts_also_when_items_are_tokens():
    lm = opened("llama")
    labels = {"class": ["x", "y", "x", "y"], "length": Label([1.0, 2.0, 3.0, 4.0], kind="real")}
    acts = capture(lm, PROMPTS, at="all", groups=["f", "f", "g", "g"], labels=labels, layers="embed")
    n = [len(lm.format(prompt)) for prompt in PROMPTS]
    assert acts.groups.tolist() == ["f"] * (n[0] + n[1]) + ["g"] * (n[2] + n[3])
    assert acts.label("class").units.tolist() == np.repeat(range(4), n).tolist()
    assert acts.label("length").kind == "real" and acts.n_groups == 2
    last = capture(lm, PROMPTS, labels=labels, layers="embed")
    assert last.label("class").units is None and last.n_groups == 4
    for wrong in (dict(groups=["f"]), dict(names=["a"]), dict(labels={"class": ["x"]})):
        with pytest.raises(InputError, match=r"prompt, 4; got 1"):
            capture(lm, PROMPTS, layers="embed", **wrong)


def test_final_is_given_only_by_name():
    lm = opened("gemma2")
    acts = capture(lm, PROMPTS, layers=["final", "block 2"])
    assert acts.layers == ("block 2", "final") and "final" not in capture(lm, PROMPTS[:1]).layers
    state = reference(lm, PROMPTS[0])[-1][-1]
    np.testing.assert_allclose(acts.values("final")[0], state, atol=CLOSE)


def test_layers_of_another_width_are_kept_at_their_width():
    """Trap 22: project_out of the OPT-350m layout comes after the blocks; the blocks keep their own width."""
    acts = capture(opened("opt_350m"), PROMPTS)
    assert {acts.values(layer).shape for layer in acts.layers} == {(4, 64)}
    assert capture(opened("gemma3n_text"), PROMPTS).values("block 0").shape == (4, 128)


def test_the_pass_ends_at_the_last_wanted_block_and_leaves_no_trace():
    """Trap 5: an early stop leaves neither hooks nor wrapped forwards, and skips later blocks and the head."""
    lm = wrap_model(tiny("llama"), tokenizer())
    ran = []
    watch = [
        module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
        for name, module in lm.model.named_modules()
        if name in ("model.layers.1", "model.layers.2", "lm_head")
    ]
    hooks, forwards = _hooks(lm.model), _wrappers(lm.model)
    capture(lm, PROMPTS[:1], layers=["block 1"])
    assert ran == ["model.layers.1"]
    for _ in range(3):
        capture(lm, PROMPTS, layers="embed")
    assert _hooks(lm.model) == hooks and _wrappers(lm.model) == forwards
    for handle in watch:
        handle.remove()


def test_an_error_inside_leaves_no_trace():
    lm = wrap_model(tiny("gpt2"), tokenizer())
    hooks = _hooks(lm.model)

    def fail(slot, hidden):
        raise ValueError("mine")

    ids, mask = pad([[5, 6]], 0, "right")
    with pytest.raises(ValueError, match=r"mine"), tapped(lm.sites, lm.layers, fail, stop=True):
        lm.model(**forward_arguments(lm.model, ids, mask))
    assert _hooks(lm.model) == hooks


def test_nothing_of_the_forward_pass_is_kept_alive():
    """Trap 12: a kept slice would keep the whole (batch, time, width) tensor."""
    lm = wrap_model(tiny("llama"), tokenizer())
    alive = []
    handle = lm.sites.blocks[1].register_forward_hook(
        lambda module, args, output: alive.append(weakref.ref(output[0] if isinstance(output, tuple) else output))
    )
    acts = capture(lm, PROMPTS)
    handle.remove()
    gc.collect()
    assert alive and all(ref() is None for ref in alive)
    for layer in acts.layers:
        values = acts.values(layer)
        owner = values
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert owner.nbytes == values.nbytes
        assert torch.from_numpy(values.copy()).untyped_storage().nbytes() == values.nbytes


@pytest.mark.parametrize("first", [True, False])
def test_the_tap_sees_a_hook_that_changes_the_stream(first):
    """Trap 4: whether hidden_states shows an ablation depends on order and version; our tap shows it always."""
    model = tiny("llama")
    lm = wrap_model(model, tokenizer())
    clean = capture(lm, PROMPTS)
    if not first:
        with torch.no_grad():
            model(torch.tensor([[5, 6]]), output_hidden_states=True)
    handle = lm.sites.blocks[1].register_forward_hook(
        lambda module, args, output: (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0
    )
    ablated = capture(lm, PROMPTS)
    handle.remove()
    assert not ablated.values("block 1").any() and clean.values("block 1").all()
    assert np.array_equal(ablated.values("block 0"), clean.values("block 0"))
    again = capture(lm, PROMPTS)  # trap 23: nothing was changed in place
    assert all(np.array_equal(again.values(layer), clean.values(layer)) for layer in lm.layers)


def test_native_dtype_is_read_without_loss():
    """bfloat16 states arrive as the float32 numbers they are; means are accumulated in float64."""
    lm = wrap_model(tiny("llama").bfloat16(), tokenizer())
    acts = capture(lm, PROMPTS, at="all", deterministic=True)
    values = acts.values("block 2")
    assert values.dtype == np.float32
    assert np.array_equal(torch.from_numpy(values.copy()).bfloat16().float().numpy(), values)
    mean = capture(lm, PROMPTS[:1], at="mean", deterministic=True).values("block 2")[0]
    first = values[: len(lm.format(PROMPTS[0]))].astype(np.float64)
    assert np.array_equal(mean, first.mean(axis=0).astype(np.float32))


def test_memory_that_runs_out_halves_the_batch():
    lm = wrap_model(tiny("llama"), tokenizer())
    sizes = []

    def short_of_memory(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    handle = lm.model.register_forward_pre_hook(short_of_memory, with_kwargs=True)
    done = []
    acts = capture(lm, PROMPTS, progress=lambda n, total: done.append((n, total)))
    handle.remove()
    assert sizes == [4, 2, 1, 1, 2, 1, 1] and done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    exact = capture(lm, PROMPTS, deterministic=True)
    assert all(np.array_equal(acts.values(layer), exact.values(layer)) for layer in lm.layers)


def test_a_prompt_that_does_not_fit_is_named():
    lm = wrap_model(tiny("llama"), tokenizer())

    def none_left(module, args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: not enough memory")

    lm.model.register_forward_pre_hook(none_left)
    with pytest.raises(InputError, match=r"prompt 1 does not fit into memory"):
        capture(lm, PROMPTS)


def test_other_errors_are_not_taken_for_missing_memory():
    lm = wrap_model(tiny("llama"), tokenizer())

    def broken(module, args):
        raise RuntimeError("shape mismatch")

    lm.model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match=r"shape mismatch"):
        capture(lm, PROMPTS)


def test_a_model_that_gives_no_numbers_is_refused():
    model = tiny("llama")
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CertificateError, match=r"finite numbers; those of block 1 are not"):
        wrap_model(model, tokenizer())


def test_batches_hold_their_budget_and_every_row_once():
    lengths = np.random.default_rng(0).integers(1, 60, size=200).tolist()
    for padded in (True, False):
        batches = length_batches(lengths, 100, padded=padded)
        assert sorted(np.concatenate(batches).tolist()) == list(range(200))
        for batch in batches:
            longest = max(lengths[i] for i in batch)
            assert len(batch) == 1 or longest * len(batch) <= 100
            assert padded or {lengths[i] for i in batch} == {longest}
    assert len(length_batches(lengths, 10**9)) == 1


def test_positions_are_counted_from_the_mask():
    ids, mask = pad([[7, 8, 9], [5]], 0, "left")
    assert ids.tolist() == [[7, 8, 9], [0, 0, 5]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions_of(mask).tolist() == [[0, 1, 2], [0, 0, 0]]
    ids, mask = pad([[7, 8, 9], [5]], 0, "right")
    assert ids.tolist() == [[7, 8, 9], [5, 0, 0]] and positions_of(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_the_record_travels():
    acts = capture(opened("llama"), PROMPTS, layers="embed")
    assert acts.info["certificate"]["blocks_path"] == "model.layers"
    assert acts.info["model"]["weights_hash"] and acts.info["model"]["attention"] == "sdpa"
    assert acts.items == ("prompt 0", "prompt 1", "prompt 2", "prompt 3")


def test_attention_kernels_agree():
    """Trap 11: the kernel is recorded; eager and sdpa states agree to rounding."""
    sdpa, eager = (wrap_model(tiny("llama", attn_implementation=kind), tokenizer()) for kind in ("sdpa", "eager"))
    assert (sdpa.info["attention"], eager.info["attention"]) == ("sdpa", "eager")
    a, b = capture(sdpa, PROMPTS), capture(eager, PROMPTS)
    for layer in a.layers:
        np.testing.assert_allclose(a.values(layer), b.values(layer), atol=CLOSE)


def _hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _wrappers(model):
    def depth(forward):
        return 1 + depth(forward.__wrapped__) if hasattr(forward, "__wrapped__") else 0

    return [depth(module.forward) for module in model.modules()]
