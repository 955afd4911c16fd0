"""Suffix replay is the full run, bit for bit, wherever it is allowed to start; where it cannot be, that is found."""

import numpy as np
import pytest
import torch
from torch import nn
from zoo import KNOWN, PROMPTS, opened, tiny, tokenizer

from lmprobe import wrap_model
from lmprobe.inputs import forward_arguments, pad
from lmprobe.replay import record, replay, replaying, resume_points
from probecore import CertificateError, InputError

pytestmark = pytest.mark.transformers


def batch(lm, side="left"):
    return pad([lm.format(prompt) for prompt in PROMPTS], lm.pad_id, side)


def full_run(lm, ids, mask):
    with torch.no_grad():
        return lm.model(**forward_arguments(lm.model, ids, mask, use_cache=lm.certificate.cached)).logits


@pytest.mark.parametrize("name", KNOWN)
def test_a_replay_from_every_block_is_the_full_run_bit_for_bit(name):
    """The same operations on the same bits in the same shapes: no tolerance. Rows are left-padded, four lengths."""
    lm = opened(name)
    ids, mask = batch(lm)
    recording = record(lm, ids, mask)
    own = full_run(lm, ids, mask)
    real = mask.bool()
    assert torch.equal(recording.logits[real], own[real])
    assert resume_points(lm).legal == (True,) * 4, resume_points(lm)
    for start in range(4):
        assert torch.equal(replay(lm, recording, start)[real], own[real]), start


@pytest.mark.parametrize("name", [name for name in KNOWN if name.startswith("gemma")])
def test_blocks_that_share_their_keys_are_found_and_run_again(name):
    """Trap 22: the last block of these configurations reads the keys of the last full block before it, block 1."""
    points = resume_points(opened(name))
    assert points.owners == ((1,) if name in ("gemma3n_text", "gemma4_text") else ())
    assert ("share their keys" in points.check.note) == bool(points.owners)
    assert points.check.holds and points.check.gap == 0


@pytest.mark.parametrize("name", KNOWN)
def test_a_changed_state_goes_on_as_a_hook_would_let_it(name):
    """The reference is a full run with a hook on block 1 that returns the changed state in the block's own shape."""
    lm = opened(name)
    ids, mask = batch(lm)
    recording = record(lm, ids, mask)
    changed = 1.5 * recording.states[1]

    def put(module, args, output):
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = lm.sites.blocks[1].register_forward_hook(put)
    expected = full_run(lm, ids, mask)
    handle.remove()
    real = mask.bool()
    assert torch.equal(replay(lm, recording, 2, changed)[real], expected[real])
    assert not torch.equal(expected[real], recording.logits[real])
    assert torch.equal(full_run(lm, ids, mask)[real], recording.logits[real])  # nothing was left behind


def test_only_the_blocks_from_the_start_on_are_run():
    lm = opened("llama")
    resume_points(lm)  # measured by runs of its own, at the first replay of a model
    recording = record(lm, *batch(lm))
    ran = []
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(lm.sites.blocks)]
    for start in range(4):
        replay(lm, recording, start)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2, 1, 2, 2]


def test_a_hook_on_a_later_block_acts_in_a_replay():
    lm = opened("gpt2")
    recording = record(lm, *batch(lm), logits_to_keep=1)
    double = lm.sites.blocks[2].register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))
    again, whole = replay(lm, recording, 2, logits_to_keep=1), replay(lm, recording, 0, logits_to_keep=1)
    double.remove()
    assert again.shape == (4, 1, lm.vocabulary)
    assert torch.equal(again, whole) and not torch.equal(again, recording.logits)


def test_blocks_are_put_back_also_after_an_error():
    lm = opened("llama")
    before = list(lm.model.model.layers)
    recording = record(lm, *batch(lm))
    with pytest.raises(KeyError), replaying(lm, recording, 2):
        assert list(lm.model.model.layers) != before
        raise KeyError
    assert list(lm.model.model.layers) == before


def test_states_are_copies_of_their_own():
    recording = record(opened("llama"), *batch(opened("llama")))
    for state in recording.states:
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


class Counter(nn.Module):
    """A final norm that changes its mind after the recording: a model that is not the same twice."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.calls = norm, 0

    def forward(self, hidden):
        self.calls += 1
        return self.norm(hidden) + self.calls


def test_a_model_that_cannot_be_replayed_is_refused():
    model = tiny("llama")
    lm = wrap_model(model, tokenizer())
    model.model.norm = Counter(model.model.norm)
    recording = record(lm, *batch(lm))
    assert resume_points(lm).legal == (False,) * 4
    with pytest.raises(CertificateError, match=r"replay from block 1 must give the logits of a full run; .* differ by"):
        replay(lm, recording, 1)


def test_a_start_or_state_that_does_not_exist_is_refused():
    lm = opened("llama")
    recording = record(lm, *batch(lm))
    for start in (-1, 4, True, 1.0):
        with pytest.raises(InputError, match="starts at a block from 0 to 3"):
            replay(lm, recording, start)
    with pytest.raises(InputError, match=r"must have shape \(4, 12, 64\)"):
        replay(lm, recording, 1, torch.zeros(4, 3, 64))
    with pytest.raises(InputError, match="start above 0"):
        replay(lm, recording, 0, recording.states[0])


def test_resume_points_are_measured_once():
    lm = opened("llama")
    assert resume_points(lm) is resume_points(lm)
    assert np.isfinite(resume_points(lm).check.gap)
