"""Edits of the decoder's input: exact at their ends, and never code 0."""

import numpy as np
import pytest
from tiny_qwen import build_tiny_qwen, voice
from toy_codec import SIZES, ToyCodec

from codecprobe import Codes, open_codec
from codecprobe.latent_edits import KINDS, Contributions, contributions, edited, mean_terms, random_control
from codecprobe.layer_sets import default_sets, name_of, parse, parse_all
from probecore import InputError
from probecore.seeds import generator

LAYERS, FRAMES, DIM = 4, 12, 6


@pytest.fixture(scope="module")
def tiny_qwen_codec(tmp_path_factory):
    from codecprobe.codecs.qwen3_tts import open_qwen3_tts

    return open_qwen3_tts(build_tiny_qwen(tmp_path_factory.mktemp("qwen")), "cpu")


def clip(seed: int, frames: int = FRAMES) -> Contributions:
    terms = np.random.default_rng(seed).standard_normal((LAYERS, frames, DIM)).astype(np.float32)
    return Contributions(terms, terms.sum(axis=0))


def edit(kind: str, layers: tuple[int, ...], own: Contributions, donor: Contributions, seed: int = 0) -> np.ndarray:
    return edited(own, layers, kind, rng=generator(seed, "t"), donor=donor, mean=mean_terms([donor]))


@pytest.mark.parametrize("kind", [*KINDS, "swap"])
def test_replacing_nothing_is_the_stock_input_itself(kind):
    own = clip(0)
    assert edit(kind, (), own, clip(1)) is own.latent


def test_dropping_a_set_leaves_the_sum_of_the_others():
    own = clip(0)
    assert np.array_equal(edit("drop", (1, 3), own, clip(1)), (own.terms[0] + own.terms[2]).astype(np.float32))
    assert not edit("drop", (0, 1, 2, 3), own, clip(1)).any()


def test_swapping_everything_is_the_other_clip_and_a_set_takes_its_terms():
    own, other = clip(0), clip(1)
    assert edit("swap", (0, 1, 2, 3), own, other) is other.latent
    by_hand = own.terms[0] + other.terms[1] + other.terms[2] + own.terms[3]
    assert np.allclose(edit("swap", (1, 2), own, other), by_hand, atol=1e-6)


def test_the_mean_is_that_of_other_clips_weighted_by_use():
    """Two clips of 12 and 4 frames: every frame counts once, so the longer clip counts three times."""
    own, long, short = clip(0), clip(1), clip(2, frames=4)
    mean = mean_terms([long, short])
    assert np.allclose(mean, np.concatenate([long.terms, short.terms], axis=1).mean(axis=1), atol=1e-6)
    changed = edited(own, (2,), "mean", rng=generator(0, "t"), mean=mean)
    assert np.allclose(changed, own.latent - own.terms[2] + mean[2], atol=1e-5)


def test_a_shuffle_keeps_the_frames_of_the_set_together_and_loses_their_order():
    own = clip(0)
    moved = edit("shuffle", (1, 2), own, clip(1)) - own.terms[0] - own.terms[3]
    pair = own.terms[1] + own.terms[2]
    order = [int(np.abs(pair - frame).sum(axis=1).argmin()) for frame in moved]
    assert sorted(order) == list(range(FRAMES)) and order != list(range(FRAMES))
    assert np.allclose(moved, pair[order], atol=1e-5)


def test_a_resample_takes_frames_of_the_donor_alone():
    own, other = clip(0), clip(1, frames=5)
    taken = edit("resample", (0,), own, other) - own.terms[1:].sum(axis=0)
    distance = np.abs(taken[:, None] - other.terms[0][None]).max(axis=-1)
    assert (distance.min(axis=1) < 1e-5).all()


def test_draws_are_named_by_their_seed():
    a, b, c = (edit("shuffle", (0,), clip(0), clip(1), seed) for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_an_edit_changes_no_input():
    own, other = clip(0), clip(1)
    kept = own.terms.copy(), other.terms.copy()
    for array in (own.terms, own.latent, other.terms, other.latent):
        array.flags.writeable = False
    for kind in (*KINDS, "swap"):
        edit(kind, (0, 2), own, other)
    assert np.array_equal(own.terms, kept[0]) and np.array_equal(other.terms, kept[1])


def test_the_random_control_moves_every_frame_as_far():
    own = clip(0)
    changed = edit("drop", (1,), own, clip(1))
    control = random_control(own.latent, changed, generator(0, "c"))
    far = np.linalg.norm(own.terms[1], axis=1)
    assert np.allclose(np.linalg.norm(control - own.latent, axis=1), far, rtol=1e-4)
    assert not np.allclose(control, changed, atol=0.1)
    assert np.array_equal(random_control(own.latent, own.latent, generator(0, "c")), own.latent)


def test_directions_of_the_control_are_even():
    """Mean of 2,000 unit vectors in 6 dimensions: norm about sqrt(1/2000) = .022; .1 is beyond 1e-6 of the cases."""
    latent = np.zeros((2000, DIM), np.float32)
    moved = random_control(latent, latent + 1, generator(0, "c"))
    assert np.linalg.norm((moved / np.linalg.norm(moved, axis=1, keepdims=True)).mean(axis=0)) < 0.1


def test_what_cannot_be_done_is_refused():
    own = clip(0)
    for layers in ((4,), (-1,)):
        with pytest.raises(InputError, match="layers must lie in 0 to 3"):
            edit("drop", layers, own, clip(1))
    with pytest.raises(InputError, match="clips of one length"):
        edit("swap", (0,), own, clip(1, frames=5))
    for kind, message in (("mean", "give mean"), ("resample", "give donor"), ("swap", "give donor")):
        with pytest.raises(InputError, match=message):
            edited(own, (0,), kind, rng=generator(0, "t"))
    with pytest.raises(InputError, match="kind of an ablation"):
        edit("zero", (0,), own, clip(1))


@pytest.mark.parametrize("name", ["toy", "embedded", "embedded-flat"])
def test_the_ends_are_bit_equal_through_a_codec(name):
    codec = ToyCodec() if name == "toy" else open_codec(name)
    rng = np.random.default_rng(0)
    waves = [(0.1 * rng.standard_normal(codec.info.sample_rate_hz)).astype(np.float32) for _ in range(2)]
    first, second = codec.encode(waves)
    a, b = contributions(codec, first.values), contributions(codec, second.values)
    every = tuple(range(codec.info.n_layers))
    for kind in (*KINDS, "swap"):
        assert np.array_equal(codec.decode_latent(edit(kind, (), a, b), first.n_samples), codec.decode(first))
    assert np.array_equal(codec.decode_latent(edit("swap", every, a, b), second.n_samples), codec.decode(second))
    empty = codec.decode_latent(np.zeros_like(a.latent), first.n_samples)
    assert np.array_equal(codec.decode_latent(edit("drop", every, a, b), first.n_samples), empty)


def test_drop_is_neither_code_0_nor_silence():
    codec = ToyCodec()
    wave = (0.1 * np.random.default_rng(1).standard_normal(4000)).astype(np.float32)
    codes = codec.encode([wave])[0]
    dropped = codec.decode_latent(edit("drop", (1,), contributions(codec, codes.values), clip(1)), 4000)
    as_0 = codes.values.copy()
    as_0[:, 1] = 0
    assert not np.allclose(dropped, codec.decode(Codes(as_0, 4000)), atol=1e-3) and dropped.any()
    assert codec.layer_embeddings(codes.values).shape[0] == len(SIZES)


@pytest.mark.transformers
def test_the_ends_are_bit_equal_through_the_real_loading_path(tiny_qwen_codec):
    """The released input is O(sum of entries), ours the sum of O(entry): the ends must not pass through our sum."""
    codec = tiny_qwen_codec
    first, second = codec.encode([voice(1.0, seed=1), voice(1.0, seed=2)])
    a, b = contributions(codec, first.values), contributions(codec, second.values)
    every = tuple(range(16))
    for kind in (*KINDS, "swap"):
        assert np.array_equal(codec.decode_latent(edit(kind, (), a, b), first.n_samples), codec.decode(first))
    assert np.array_equal(codec.decode_latent(edit("swap", every, a, b), second.n_samples), codec.decode(second))
    empty = codec.decode_latent(np.zeros_like(a.latent))
    assert np.array_equal(codec.decode_latent(edit("drop", every, a, b)), empty)


@pytest.mark.transformers
def test_a_drop_equals_a_hook_in_the_stock_decoder_and_differs_from_code_0_and_minus_1(tiny_qwen_codec):
    """Zeros out of `project_out` of one layer in the released path: equal to 1e-4 of the peak (float32 in two orders).

    Index -1 is clamped to 0 by the released code, so both wrong ablations are the vector of entry 0.
    """
    import torch

    codec = tiny_qwen_codec
    (codes,) = codec.encode([voice(1.0, seed=3)])
    ours = codec.decode_latent(edit("drop", (5,), contributions(codec, codes.values), clip(1)))
    module = codec.model.decoder.quantizer.rvq_rest.vq.layers[4].project_out
    hook = module.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
    try:
        stock = codec.decode(Codes(codes.values, len(ours)))
    finally:
        hook.remove()
    scale = np.abs(stock).max()
    assert np.abs(ours - stock).max() <= 1e-4 * scale
    as_0 = codes.values.copy()
    as_0[:, 5] = 0
    assert np.abs(ours - codec.decode(Codes(as_0, len(ours)))).max() > 100 * np.abs(ours - stock).max()
    with pytest.raises(InputError, match="layer 5"):
        codec.decode(Codes(np.where(np.arange(16) == 5, -1, codes.values), len(ours)))


@pytest.mark.transformers
def test_an_edit_leaks_forward_only(tiny_qwen_codec):
    """Causal decoder: frames before the edit are untouched (1e-5 of the peak, float32), every later one may change."""
    codec = tiny_qwen_codec
    (codes,) = codec.encode([voice(2.0, seed=4)])
    own = contributions(codec, codes.values)
    changed = own.latent.copy()
    changed[10:11] -= own.terms[0, 10:11]
    before, after = codec.decode_latent(own.latent), codec.decode_latent(changed)
    at = 10 * codec.info.hop_samples
    scale = np.abs(before).max()
    assert np.abs(after - before)[:at].max() <= 1e-5 * scale
    frames = np.abs(after - before)[at:].reshape(-1, codec.info.hop_samples).max(axis=1)
    assert frames[0] > 1e-3 * scale and (frames[3:] > 0).any()


def test_sets_are_read_as_they_are_written():
    assert parse("0", 8) == ((0,),) and parse(" 1 - 2 ", 8) == ((1, 2),) and parse("0,3-5,4", 8) == ((0, 3, 4, 5),)
    assert parse("each", 3) == ((0,), (1,), (2,)) and parse("all", 3) == ((0, 1, 2),)
    assert parse("only", 3) == ((1, 2), (0, 2), (0, 1)) and parse("prefixes", 3) == ((1, 2), (2,))
    assert parse("only", 1) == () and parse("prefixes", 1) == ()
    assert parse_all(["0", "each", "0-1"], 2) == ((0,), (1,), (0, 1))
    for layers in (*parse("only", 9), (0, 2, 3, 4, 7)):
        assert parse(name_of(layers), 9) == (layers,)


@pytest.mark.parametrize("text", ["8", "-1", "2-1", "1-8", "", "a", "0;1", "1-", "0,,1"])
def test_what_is_no_set_is_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"--layers must name layers 0 to 7"):
        parse(text, 8)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 16, 32])
def test_default_sets_hold_every_layer_and_all(n):
    sets = default_sets(n)
    assert [s for s in sets if len(s) == 1] == [(k,) for k in range(n)] and sets[-1] == tuple(range(n))
    assert len(sets) == len(set(sets)) and (n < 3 or (1, 2) in sets)
