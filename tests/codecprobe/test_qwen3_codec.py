"""The Qwen3-TTS tokenizer against the released code: the traps of its batches, sums, seams and number formats.

All on a tiny random tokenizer that goes through the real save_pretrained and from_pretrained, so relations are tested,
never literal codes. Tolerance of decoded audio: the tiny decoder's float32 noise is below 1e-4 at an rms of 0.1.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_qwen import ENTRIES, HOP, RATE_HZ, build_tiny_qwen, voice

from codecprobe.codecs import qwen3_compat as compat
from codecprobe.codecs import qwen3_tts
from codecprobe.codecs.codec import Codec, Codes
from codecprobe.codecs.precision import exact_float32
from codecprobe.codecs.qwen3_certificate import recomputed_codes
from codecprobe.codecs.qwen3_tts import Qwen3TTSCodec, open_qwen3_tts
from probecore.errors import CertificateError, InputError
from probecore.seeds import generator

pytestmark = pytest.mark.transformers
NOISE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def codec(folder):
    return open_qwen3_tts(folder, "cpu")


@pytest.fixture
def own_codec(folder):
    """A codec that a test may change."""
    return open_qwen3_tts(folder, "cpu")


def random_codes(frames, seed=0):
    return generator(seed, "codes").integers(0, ENTRIES, (frames, 16))


def released_decode(codec, codes):
    with torch.inference_mode():
        return codec.model.decode(torch.tensor(codes[None])).audio_values[0].numpy()


def test_info_says_what_the_layers_are(codec, folder):
    info = codec.info
    assert isinstance(codec, Codec)
    assert (info.sample_rate_hz, info.hop_samples, info.frame_rate_hz, info.n_layers) == (24_000, 1920, 12.5, 16)
    assert info.parallel_groups == ((0,), tuple(range(1, 16)))
    assert info.source == folder.name and set(info.versions) == {"qwen-tts", "transformers", "torch"}


# --- C1: batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [19200, 19201, 20160, 21119, 24000, 1920, 100, 1])
def test_codes_do_not_depend_on_the_batch(codec, n):
    """Bit-equal alone and through `encode` with others.

    In one call of the model beside a longer clip (what a GPU does) matrix products of another shape round otherwise,
    which may flip a near tie of a late layer: at most 1 code in 100, where a wrongly padded last frame changes many.
    """
    clip, longer = voice(n / RATE_HZ, seed=n), voice(2.0, seed=1)
    assert len(clip) == n
    alone = codec.encode([clip])[0]
    assert alone.values.shape == (-(-n // HOP), 16) and alone.n_samples == n
    np.testing.assert_array_equal(codec.encode([longer, clip, longer])[1].values, alone.values)
    assert (codec._encode_batch([longer, clip])[1] != alone.values).sum() <= max(1, alone.values.size // 100)


def test_the_released_wrapper_changes_the_last_frame_with_the_batch(codec):
    """The trap is real: without own padding a clip's last, partial frame changes beside a longer clip, no other."""
    longer, changed = voice(2.0, seed=1), []
    for n in (19201, 20160, 24000, 100):
        clip = voice(n / RATE_HZ, seed=n)
        alone = codec.tokenizer.encode([clip], sr=RATE_HZ).audio_codes[0].numpy()
        beside = codec.tokenizer.encode([clip, longer], sr=RATE_HZ).audio_codes[0].numpy()
        np.testing.assert_array_equal(alone[:-1], beside[:-1])
        assert (beside != codec.encode([clip])[0].values).mean() <= 0.01
        changed.append(not np.array_equal(alone[-1], beside[-1]))
    assert any(changed)


@pytest.mark.parametrize("frames", [1, 7, 40])
def test_codes_of_whole_frames_are_those_of_the_released_wrapper(codec, frames):
    clip = voice(frames * HOP / RATE_HZ, seed=frames)
    released = codec.tokenizer.encode([clip], sr=RATE_HZ).audio_codes[0].numpy()
    np.testing.assert_array_equal(codec.encode([clip])[0].values, released)


def test_results_come_in_the_order_of_the_clips(codec):
    clips = [voice(seconds, seed=i) for i, seconds in enumerate((0.3, 1.1, 0.2, 0.9))]
    for clip, codes in zip(clips, codec.encode(clips), strict=True):
        np.testing.assert_array_equal(codes.values, codec.encode([clip])[0].values)
    assert codec.encode([]) == []


def test_gpu_batches_are_sorted_by_length_and_within_the_budget(own_codec, monkeypatch):
    """Longest first; a batch padded to its longest clip stays within the budget; a clip over the budget goes alone."""
    monkeypatch.setattr(Qwen3TTSCodec, "device", property(lambda _: torch.device("cuda")))
    own_codec._batch_samples = 20 * HOP
    clips = [np.zeros(frames * HOP, np.float32) for frames in (30, 9, 8, 5, 5, 2)]
    waiting, batches = list(range(6)), []
    while waiting:
        batches.append(own_codec._next_batch(waiting, clips))
        waiting = waiting[len(batches[-1]) :]
    assert batches == [[0], [1, 2], [3, 4, 5]]


def test_memory_that_runs_out_halves_the_batch_until_it_fits(own_codec, monkeypatch):
    clips = [voice(0.4, seed=i) for i in range(7)]
    expected = [codes.values for codes in own_codec.encode(clips)]
    real, calls = Qwen3TTSCodec._encode_batch, []

    def small_memory(self, batch):
        calls.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch)

    monkeypatch.setattr(Qwen3TTSCodec, "_encode_batch", small_memory)
    found = own_codec._encode_with_back_off(clips)
    assert np.mean([a == b for a, b in zip(found, expected, strict=True)]) > 0.99, "but for near ties, see above"
    assert calls == [7, 3, 1, 2, 4, 2, 2]
    assert own_codec._batch_samples == 2 * 5 * HOP, "later batches start at the size that fitted"


def test_a_clip_that_does_not_fit_alone_is_refused_with_the_next_step(own_codec, monkeypatch):
    def no_memory(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Qwen3TTSCodec, "_encode_batch", no_memory)
    with pytest.raises(InputError, match="a clip of 3 s does not fit into the memory of cpu: cut it, or use --device"):
        own_codec.encode([voice(3.0)])


# --- C3, C4, C18: what the decoder gets ---------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 5, 300])
def test_decoding_equals_the_released_decode_bit_for_bit(codec, frames):
    codes = random_codes(frames)
    released = released_decode(codec, codes)
    np.testing.assert_array_equal(codec.decode_latent(codec.latent(codes)), released)
    n = frames * HOP - 777
    np.testing.assert_array_equal(codec.decode(Codes(codes, n)), released[:n])


def test_terms_of_the_layers_add_up_to_the_released_latent(codec):
    """Sixteen float32 terms in another order: 16 roundings of 6e-8 of the sum of their sizes, 1e-6 of it."""
    codes = random_codes(60)
    terms = codec.layer_embeddings(codes)
    with torch.inference_mode():
        latent = codec.model.decoder.quantizer.decode(torch.tensor(codes.T[None]))[0].T.numpy()
    assert terms.shape == (16, 60, 32) and terms.dtype == np.float32
    assert np.abs(terms.sum(axis=0) - latent).max() <= 1e-6 * np.abs(terms).sum(axis=0).max()
    np.testing.assert_array_equal(codec.latent(codes), latent)


def test_terms_are_the_projected_table_entries(codec):
    """C_0 = O_sem E'_0[c_0], C_k = O_ac E'_k[c_k], by matrix products written out here in float64."""
    codes, decoder = random_codes(9), codec.model.decoder.quantizer
    terms = codec.layer_embeddings(codes)
    for k in (0, 1, 7, 15):
        group = decoder.rvq_first if k == 0 else decoder.rvq_rest
        table = group.vq.layers[k if k == 0 else k - 1]._codebook
        entries = table.embedding_sum.double() / table.cluster_usage.double().clamp(min=1e-5)[:, None]
        expected = entries[codes[:, k]] @ group.output_proj.weight[:, :, 0].double().T
        np.testing.assert_allclose(terms[k], expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 5, 15])
def test_dropping_a_term_is_the_released_decode_with_a_zeroed_table(own_codec, layer):
    """C2: a true ablation. Code 0 is entry 0 of the table, and gives other audio."""
    codes = random_codes(30)
    terms = own_codec.layer_embeddings(codes)
    dropped = own_codec.decode_latent(terms.sum(axis=0) - terms[layer])
    as_0 = codes.copy()
    as_0[:, layer] = 0
    assert np.abs(released_decode(own_codec, as_0) - dropped).max() > 10 * NOISE
    group = own_codec.model.decoder.quantizer.rvq_first if layer == 0 else own_codec.model.decoder.quantizer.rvq_rest
    group.vq.layers[max(layer - 1, 0)]._codebook.embedding_sum.data.zero_()
    np.testing.assert_allclose(released_decode(own_codec, codes), dropped, rtol=0, atol=NOISE)


@pytest.mark.parametrize("code", [-1, ENTRIES])
def test_what_is_no_code_is_refused_by_layer_and_frame(codec, code):
    codes = random_codes(4)
    codes[2, 3] = code
    for call in (codec.layer_embeddings, codec.latent, lambda c: codec.decode(Codes(c, HOP))):
        with pytest.raises(InputError, match=rf"codes of layer 3 must lie in \[0, 64\); got {code} in frame 2"):
            call(codes)
    with pytest.raises(InputError, match=r"shape \(frames, 16\)"):
        codec.layer_embeddings(codes[:, :8])


def test_both_groups_quantise_the_same_latent(codec):
    """C4: codes recomputed from z. Residuals shrink inside layers 1-15; layer 0 is not the start of their chain."""
    clip = voice(3.0, seed=4)
    codes, inputs = codec.encode([clip])[0].values, codec.group_inputs(clip)
    np.testing.assert_array_equal(recomputed_codes(codec, inputs), codes)
    z, quantizer = codec.latents(clip), codec.model.encoder.quantizer
    assert z.shape == (len(codes), 32)
    project = quantizer.acoustic_residual_vector_quantizer.input_proj.weight[:, :, 0].numpy()
    np.testing.assert_allclose(inputs[1], z @ project.T, rtol=0, atol=1e-5)

    residual, norms = inputs[1].astype(np.float64), []
    for layer in range(1, 16):
        norms.append(np.linalg.norm(residual, axis=1).mean())
        residual = residual - codec.codebook(layer)[codes[:, layer]]
    assert norms[-1] < 0.5 * norms[0] and all(later < 1.02 * earlier for earlier, later in pairwise(norms))
    one_chain = inputs[1] - codec.codebook(0)[codes[:, 0]]
    assert (recomputed_codes(codec, (inputs[0], one_chain))[:, 1] != codes[:, 1]).mean() > 0.2


def test_decoded_length_is_asked_for_within_the_frames(codec):
    latent = codec.latent(random_codes(3))
    assert len(codec.decode_latent(latent)) == 3 * HOP and len(codec.decode_latent(latent, 1)) == 1
    for n in (0, -5, 3 * HOP + 1):
        with pytest.raises(InputError, match=r"n_samples must lie in 1 to 5760, 3 frames"):
            codec.decode_latent(latent, n)
    for bad in (latent[:, :5], latent[0], latent[:0], latent.astype(int), latent * np.nan):
        with pytest.raises(InputError, match=r"latent must be finite floats of shape \(frames, 32\)"):
            codec.decode_latent(bad)


# --- C5: seams ----------------------------------------------------------------------------------------------------


def test_pieces_leave_a_seam_unless_they_overlap_by_layers_times_window(codec):
    """Two layers of window 72 reach 144 frames back: 25 (released) and 72 frames of context leave a seam, not 144."""
    latent = codec.latent(random_codes(400))
    whole = codec._decode_in_pieces(latent, 400, 0)
    seams = {left: np.abs(whole - codec._decode_in_pieces(latent, 300, left)).max() for left in (25, 72, 144)}
    assert seams[144] <= NOISE
    assert seams[25] > 10 * NOISE and seams[72] > 2 * NOISE
    np.testing.assert_array_equal(released_decode(codec, random_codes(400)), codec._decode_in_pieces(latent, 300, 25))


def test_clips_of_more_than_a_minute_are_decoded_without_a_seam(codec):
    frames = qwen3_tts.WHOLE_FRAMES + 80
    latent = codec.latent(random_codes(frames))
    whole = codec._decode_in_pieces(latent, frames, 0)
    found = codec.decode_latent(latent)
    assert len(found) == frames * HOP and not np.array_equal(found, whole)
    assert np.abs(found - whole).max() <= NOISE


# --- C6, C7, C14: number formats, caches, devices -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_float32_whatever_the_default_is(folder, codec, dtype):
    clip = voice(1.0)
    expected = codec.encode([clip])[0]
    audio = codec.decode(expected)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        opened = open_qwen3_tts(folder, "cpu")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            codes = opened.encode([clip])[0]
            decoded = opened.decode(codes)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)
    assert opened.certificate["dtype"] == "float32" and decoded.dtype == np.float32
    np.testing.assert_array_equal(codes.values, expected.values)
    np.testing.assert_array_equal(decoded, audio)


def test_half_precision_would_give_other_codes(own_codec):
    """Why float32 matters: the same weights in bfloat16 disagree, mostly in late layers."""
    clip = voice(4.0)
    expected = own_codec.encode([clip])[0].values
    own_codec.model.to(torch.bfloat16)
    wave = torch.tensor(clip[None, : len(expected) * HOP]).to(torch.bfloat16)
    with torch.inference_mode():
        codes = own_codec.model.encode(wave, torch.ones(wave.shape, dtype=torch.int32)).audio_codes[0].numpy()
    assert (codes[:, 10:] != expected[:, 10:]).mean() > 0.05


def test_the_context_restores_the_users_settings():
    torch.set_float32_matmul_precision("medium")
    tf32, benchmark = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        with exact_float32(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest" and torch.is_inference_mode_enabled()
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == (tf32, benchmark)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_moving_the_codec_drops_cached_tables_and_certifies_again(own_codec):
    """C7: the encoder caches its tables; an edit has no effect until the cache is dropped, which `to` does."""
    clip = voice(1.0)
    before = own_codec.encode([clip])[0].values
    table = own_codec._encoder_table(0)
    table.embed_sum.copy_(table.embed_sum.flip(0))
    table.cluster_usage.copy_(table.cluster_usage.flip(0))
    np.testing.assert_array_equal(own_codec.encode([clip])[0].values, before)
    assert own_codec.to("cpu") is own_codec
    after = own_codec.encode([clip])[0].values
    np.testing.assert_array_equal(after[:, 0], ENTRIES - 1 - before[:, 0])
    np.testing.assert_array_equal(after[:, 1:], before[:, 1:])
    assert own_codec.certificate["encoder_and_decoder_tables_equal"] is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_on_a_gpu_codes_agree_and_agreement_is_reported(folder, codec):
    on_gpu = open_qwen3_tts(folder, "cuda")
    assert on_gpu.certificate["device"] == "cuda" and 0.9 <= on_gpu.certificate["code_agreement_in_one_batch"] <= 1
    clips = [voice(seconds, seed=i) for i, seconds in enumerate((0.3, 2.2, 1.0))]
    for ours, theirs in zip(on_gpu.encode(clips), codec.encode(clips), strict=True):
        assert (ours.values == theirs.values).mean() > 0.9
    assert on_gpu.to("cpu").certificate["device"] == "cpu"
    for ours, theirs in zip(on_gpu.encode(clips), codec.encode(clips), strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)


# --- C8 to C13: what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros(0, np.float32), "clip 1: a clip must hold at least 1 sample"),
        (np.zeros((2, 4000), np.float32), r"clip 1: a clip must be a 1-D array of samples; got \(2, 4000\)"),
        (np.zeros(4000, np.int16), "clip 1: samples must be floats"),
        (np.full(4000, np.inf, np.float32), "clip 1: samples must be finite"),
        ("x" * 300, "clip 1: a clip must be a 1-D array of samples; got str"),
        ("http://localhost/x.wav", "clip 1: a clip must be a 1-D array of samples; got str"),
    ],
)
def test_only_float_waveforms_are_taken(codec, clip, message):
    with pytest.raises(InputError, match=message):
        codec.encode([voice(0.2), clip])


@pytest.mark.parametrize(("seconds", "name"), [(60.0, "long"), (0.2, "short"), (2.0, "silent")])
def test_long_short_and_silent_clips_are_encoded_and_decoded(codec, seconds, name):
    clip = np.zeros(int(seconds * RATE_HZ), np.float32) if name == "silent" else voice(seconds)
    codes = codec.encode([clip])[0]
    assert codes.values.shape == (-(-len(clip) // HOP), 16)
    assert codes.values.min() >= 0 and codes.values.max() < ENTRIES
    if name != "long":
        assert len(codec.decode(codes)) == len(clip)


def test_codes_and_latents_are_plain_arrays(codec):
    """C13: an embedding can be trained on codes; nothing is an inference-mode tensor or the model's memory."""
    clip = voice(0.5)
    codes = codec.encode([clip])[0].values
    table = torch.nn.Embedding(ENTRIES, 3)
    table(torch.from_numpy(codes)).sum().backward()
    assert table.weight.grad.abs().sum() > 0
    before = codec.codebook(3).copy()
    for array in (codec.codebook(3), codec.latents(clip), codec.layer_embeddings(codes), codec.training_usage(3)):
        array[...] = 0
    np.testing.assert_array_equal(codec.codebook(3), before)
    assert codec.training_usage(3).min() > 0


def test_tables_are_sums_over_usage(codec):
    for layer in (0, 9):
        table = codec._encoder_table(layer)
        expected = table.embed_sum.double() / table.cluster_usage.double()[:, None]
        np.testing.assert_allclose(codec.codebook(layer), expected.numpy(), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(codec.training_usage(layer), table.cluster_usage.numpy())
        np.testing.assert_array_equal(codec.decoder_codebook(layer), codec.codebook(layer))
    for layer in (-1, 16):
        with pytest.raises(InputError, match="layer must lie in 0 to 15"):
            codec.codebook(layer)


# --- C15: hooks ---------------------------------------------------------------------------------------------------


def test_a_hook_that_does_not_fire_is_an_error_and_none_stays_behind(own_codec, monkeypatch):
    """Quantisers are called by method, so a hook on them never fires: their output would silently be missing."""
    monkeypatch.setattr(compat, "encoder_downsample", lambda model: model.encoder.quantizer)
    with pytest.raises(CertificateError, match="it ran 0 times"):
        own_codec.latents(voice(0.3))
    monkeypatch.undo()
    own_codec.latents(voice(0.3))
    assert not [module for module in own_codec.model.modules() if module._forward_hooks]


@pytest.mark.parametrize(("frames", "calls"), [(20, 1), (300, 1), (301, 2)])
def test_sites_that_fire_once_per_piece_of_the_released_decode(codec, frames, calls):
    """The sites an ablation can hook: both output projections, every layer's project_out, pre_conv."""
    quantizer, counts = codec.model.decoder.quantizer, {}
    sites = {"first": quantizer.rvq_first.output_proj, "rest": quantizer.rvq_rest.output_proj}
    sites |= {f"layer {k}": codec._decoder_layer(k)[1].project_out for k in range(16)}
    sites["pre_conv"] = codec.model.decoder.pre_conv
    hooks = [
        site.register_forward_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))
        for name, site in sites.items()
    ]
    try:
        released_decode(codec, random_codes(frames))
    finally:
        for hook in hooks:
            hook.remove()
    assert counts == dict.fromkeys(sites, calls)
