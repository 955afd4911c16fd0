"""Mimi, EnCodec, DAC and X-codec: codes and audio are those of the model itself, recomputed from the file's tensors.

The folders hold random weights at small sizes and are read by the real loading path. On a CPU every comparison with the
model's own encode and decode is exact: the same modules run on the same numbers.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_codecs import ENTRIES, HOPS, LAYERS, RATES, build_tiny_codec, speech_like

from codecprobe.codecs.codec import Codes
from codecprobe.codecs.conformance import check_codec
from codecprobe.codecs.registry import open_codec
from codecprobe.codecs.residual import gap_to_nearest
from probecore.errors import InputError

pytestmark = pytest.mark.transformers
NAMES = tuple(LAYERS)
CLASSES = {"mimi": "MimiModel", "encodec": "EncodecModel", "dac": "DacModel", "xcodec": "XcodecModel"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("codecs")
    return {name: build_tiny_codec(name, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def codecs(folders):
    return {name: open_codec(folder, "cpu") for name, folder in folders.items()}


def stock(name, folder):
    """Return the model as anyone loads it."""
    import transformers

    return getattr(transformers, CLASSES[name]).from_pretrained(folder).eval()


@torch.no_grad()
def stock_codes(name, model, clip):
    """Return the model's own codes (frames, layers) of a clip that is filled up to whole frames with zeros."""
    wave = torch.from_numpy(np.pad(clip, (0, -len(clip) % HOPS[name])))[None, None]
    bandwidth = {"bandwidth": model.config.target_bandwidths[-1]} if name in ("encodec", "xcodec") else {}
    codes = model.encode(wave, **bandwidth).audio_codes
    return (codes[0, 0] if name == "encodec" else codes[0]).T.numpy()


@torch.no_grad()
def stock_audio(name, model, codes):
    index = torch.from_numpy(codes.T.copy())[None]
    if name == "encodec":
        return model.decode(index[None], [None]).audio_values[0, 0].numpy()
    return model.decode(audio_codes=index).audio_values.reshape(-1).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_of_the_contract_holds(codecs, name):
    report = check_codec(codecs[name])
    assert report.passed, str(report)
    skipped = {check.rule for check in report.checks if check.status == "not applicable"}
    assert len(skipped) == {"mimi": 0, "encodec": 2, "dac": 3, "xcodec": 2}[name], str(report)


@pytest.mark.parametrize("name", NAMES)
def test_facts(codecs, name):
    info = codecs[name].info
    assert (info.name, info.sample_rate_hz, info.hop_samples) == (name, RATES[name], HOPS[name])
    assert info.codebook_sizes == (ENTRIES,) * LAYERS[name]
    assert info.parallel_groups == (((0,), (1, 2, 3, 4, 5)) if name == "mimi" else (tuple(range(LAYERS[name])),))
    assert info.causal == (name == "mimi")
    assert not info.synthetic and info.source == name
    assert info.frame_rate_hz == {"mimi": 12.5, "encodec": 75, "dac": 31.25, "xcodec": 50}[name]
    certificate = codecs[name].certificate
    assert certificate["dtype"] == "float32" and certificate["eval_mode"]
    assert (certificate["layers_used"], certificate["layers_of_model"]) == (LAYERS[name], LAYERS[name])


@pytest.mark.parametrize("name", NAMES)
def test_codes_and_audio_are_the_models_own(codecs, folders, name):
    """A clip of 11.4 frames: codes equal those of the stock model on the padded clip, audio is its decode, cut."""
    codec, model = codecs[name], stock(name, folders[name])
    clip = speech_like(11.4 * HOPS[name] / RATES[name], RATES[name], seed=1)
    (codes,) = codec.encode([clip])
    assert np.array_equal(codes.values, stock_codes(name, model, clip))
    assert all(len(set(codes.values[:, layer])) > 1 for layer in range(LAYERS[name]))
    audio = codec.decode(codes)
    assert len(audio) == len(clip) and np.abs(audio).max() > 0.01
    assert np.array_equal(audio, stock_audio(name, model, codes.values)[: len(clip)])


@pytest.mark.parametrize("name", ["mimi", "encodec", "xcodec"])
def test_codes_are_the_nearest_entries_of_the_tables_in_the_file(codecs, folders, name):
    """In float64, from the tensors as they lie in the file. 1e-5 of the squared norms is what float32 can miss by."""
    codec = codecs[name]
    tables = tables_of_the_file(load_file(folders[name] / "model.safetensors"), name)
    clip = speech_like(40 * HOPS[name] / RATES[name], RATES[name], seed=2)
    codes = codec.encode([clip])[0].values
    worst = []
    for group, start in zip(codec.info.parallel_groups, codec.group_inputs(clip), strict=True):
        residual = start.astype(np.float64)
        for layer in group:
            assert np.allclose(codec.codebook(layer), tables[layer], rtol=1e-6, atol=0)
            distance = ((residual[:, None] - tables[layer][None]) ** 2).sum(axis=-1)
            chosen = codes[:, layer]
            scale = (residual**2).sum(axis=1) + (tables[layer][chosen] ** 2).sum(axis=1)
            worst.append(((distance[np.arange(len(codes)), chosen] - distance.min(axis=1)) / scale).max())
            residual = residual - tables[layer][chosen]
    assert max(worst) <= 1e-5


def tables_of_the_file(tensors, name):
    """Return the float64 tables (entries, dim) by layer, found by the names that published checkpoints use."""
    tensors = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    if name != "mimi":
        part = {"encodec": "quantizer.layers", "xcodec": "quantizer.quantizers"}[name]
        return [tensors[f"{part}.{k}.codebook.embed"] for k in range(LAYERS[name])]
    prefix = "quantizer.{}_residual_vector_quantizer.layers.{}.codebook."
    places = [prefix.format("semantic", 0), *(prefix.format("acoustic", k) for k in range(5))]
    return [
        tensors[place + "embed_sum"] / np.maximum(tensors[place + "cluster_usage"], 1e-5)[:, None] for place in places
    ]


def test_dac_chooses_by_cosine_and_takes_the_length_of_the_entry(codecs, folders):
    """The chain of the paper in float64 from the file's tensors: r - O(E[argmax cos(P r, E)])."""
    codec = codecs["dac"]
    tensors = {key: tensor.double().numpy() for key, tensor in load_file(folders["dac"] / "model.safetensors").items()}
    clip = speech_like(2, RATES["dac"], seed=2)
    codes = codec.encode([clip])[0].values
    residual = codec.latents(clip).astype(np.float64)
    terms = codec.layer_embeddings(codes)
    lengths = []
    for layer in range(LAYERS["dac"]):
        part = f"quantizer.quantizers.{layer}."
        entries = tensors[part + "codebook.weight"]
        point = residual @ tensors[part + "in_proj.weight"][..., 0].T + tensors[part + "in_proj.bias"]
        cosine = point @ entries.T / np.linalg.norm(point, axis=1)[:, None] / np.linalg.norm(entries, axis=1)
        assert np.array_equal(cosine.argmax(axis=1), codes[:, layer])
        term = entries[codes[:, layer]] @ tensors[part + "out_proj.weight"][..., 0].T + tensors[part + "out_proj.bias"]
        assert np.allclose(terms[layer], term, atol=1e-5 * np.abs(term).max())
        assert np.array_equal(codec.codebook(layer), entries.astype(np.float32))
        residual = residual - term
        lengths.append(np.linalg.norm(entries, axis=1))
    assert np.ptp(np.concatenate(lengths)) > 0.1  # else choosing by distance would be the same


@pytest.mark.parametrize("name", NAMES)
def test_the_first_layers_are_those_of_all_layers(codecs, folders, name):
    """Cutting the chain changes no code before the cut; the audio is the model's own decode of so many layers."""
    clip = speech_like(9 * HOPS[name] / RATES[name], RATES[name], seed=3)
    whole = codecs[name].encode([clip])[0]
    for kept in (1, 2, LAYERS[name]):
        cut = open_codec(f"{folders[name]}:{kept}", "cpu")
        (codes,) = cut.encode([clip])
        assert cut.info.n_layers == kept and cut.certificate["layers_of_model"] == LAYERS[name]
        assert np.array_equal(codes.values, whole.values[:, :kept])
        assert np.array_equal(
            cut.decode(codes), stock_audio(name, stock(name, folders[name]), codes.values)[: len(clip)]
        )
        assert cut.info.parallel_groups == (((0,), (1,))[:kept] if name == "mimi" and kept < 3 else cut._groups(kept))


def test_encodec_cut_to_a_lower_bandwidth_is_that_bandwidth(codecs, folders):
    """2 of 4 layers are what the model gives at half of its largest bandwidth."""
    model, cut = stock("encodec", folders["encodec"]), open_codec(f"{folders['encodec']}:2", "cpu")
    clip = speech_like(1, RATES["encodec"])
    with torch.no_grad():
        low = model.encode(torch.from_numpy(clip)[None, None], bandwidth=0.75).audio_codes[0, 0].T.numpy()
    assert low.shape == (75, 2) and np.array_equal(cut.encode([clip])[0].values, low)


@pytest.mark.parametrize("name", NAMES)
def test_dropping_every_layer_gives_the_decoders_empty_latent(codecs, name):
    codec = codecs[name]
    terms = codec.layer_embeddings(codec.encode([speech_like(0.8, RATES[name])])[0].values)
    empty = codec.decode_latent(terms.sum(axis=0) - terms.sum(axis=0))
    assert np.array_equal(empty, codec.decode_latent(np.zeros(terms.shape[1:], np.float32)))
    assert not np.array_equal(empty, codec.decode_latent(terms.sum(axis=0)))


def test_mimi_layer_0_is_not_the_start_of_the_chain(codecs):
    """Taking layer 1 as the residual of layer 0 gives other codes: the two groups quantise the latent side by side."""
    codec = codecs["mimi"]
    clip = speech_like(2, RATES["mimi"], seed=4)
    codes = codec.encode([clip])[0].values
    semantic, acoustic = (start.astype(np.float64) for start in codec.group_inputs(clip))
    one_chain = semantic - codec.codebook(0)[codes[:, 0]]
    assert gap_to_nearest(acoustic, codec.codebook(1).astype(np.float64), codes[:, 1]) <= 1e-5
    assert gap_to_nearest(one_chain, codec.codebook(1).astype(np.float64), codes[:, 1]) > 0.01


def test_mimi_attends_over_its_window_on_every_transformers(tmp_path):
    """One layer of attention over 5 steps, step by step: the last output of the stock transformer on steps t-4 to t.

    Rotary angles are relative, so a slice sees the same angles; float32 rounds them by about 60 x 6e-8. Stock
    transformers 4.57 ignores the window, which is what this holds off: there the outputs differ by parts of their size.
    """
    folder = build_tiny_codec("mimi", tmp_path / "mimi", sliding_window=5)
    codec, seen = open_codec(folder, "cpu"), []
    transformer = codec._encoding.encoder_transformer
    transformer.register_forward_hook(lambda _m, inputs, output: seen.append((inputs[0], output[0])))
    codec.encode([speech_like(30 * 0.08, RATES["mimi"])])
    hidden, found = seen[0]
    plain = stock("mimi", folder)
    plain = (plain.encoder if hasattr(plain.encoder, "downsample") else plain).encoder_transformer
    with torch.no_grad():
        wanted = [plain(hidden[:, max(0, t - 4) : t + 1])[0][:, -1] for t in range(hidden.shape[1])]
    error = (torch.stack(wanted, dim=1) - found).abs().max() / found.abs().max()
    assert hidden.shape[1] == 60
    assert error < 1e-4
    wide = open_codec(build_tiny_codec("mimi", tmp_path / "wide", sliding_window=250), "cpu")
    clip = speech_like(30 * 0.08, RATES["mimi"])
    difference = np.abs(wide.latents(clip) - codec.latents(clip)).max(axis=1) / np.abs(wide.latents(clip)).max()
    assert difference[1] < 1e-6 and difference[-1] > 1e-4  # steps 0 to 4 see all; later ones do not


def test_encodec_mirrors_the_start_so_it_is_not_causal(codecs, tmp_path):
    """Its convolutions pad with a mirror of what follows: audio from frame 6 on changes the latent of frame 0.

    With zeros in place of the mirror the same classes are causal, and the conformance check says so.
    """
    codec = codecs["encodec"]
    clip = speech_like(20 * HOPS["encodec"] / RATES["encodec"], RATES["encodec"])
    other = clip.copy()
    other[6 * HOPS["encodec"] :] *= -0.5
    assert not np.array_equal(codec.latents(clip)[0], codec.latents(other)[0])
    zeros = open_codec(build_tiny_codec("encodec", tmp_path / "zeros", pad_mode="constant"), "cpu")
    assert zeros.info.causal and check_codec(zeros).passed
    assert np.array_equal(zeros.latents(clip)[:6], zeros.latents(other)[:6])


def test_dac_keeps_the_samples_that_do_not_fill_a_frame(codecs, folders):
    """16000 samples are 31.25 frames: the model alone gives 31 and 15872 samples back, the adapter 32 and all."""
    model = stock("dac", folders["dac"])
    clip = speech_like(1, 16_000)
    with torch.no_grad():
        alone = model.encode(torch.from_numpy(clip)[None, None]).audio_codes
    assert alone.shape[-1] == 31 and len(stock_audio("dac", model, alone[0].T.numpy())) == 15_872
    (codes,) = codecs["dac"].encode([clip])
    assert codes.values.shape == (32, 5) and len(codecs["dac"].decode(codes)) == 16_000


def test_dac_with_an_odd_stride_ends_short_and_the_rest_is_zero(tmp_path):
    """Strides 8, 5, 4, 2: the factor 5 loses one of its samples, 4 x 2 = 8 of the output."""
    folder = build_tiny_codec("dac", tmp_path / "dac", downsampling_ratios=[2, 4, 5, 8])
    codec = open_codec(folder, "cpu")
    assert codec.info.hop_samples == 320 and codec.certificate["short_of_whole_frames"] == 8
    (codes,) = codec.encode([speech_like(0.2, 16_000)])
    own = stock_audio("dac", stock("dac", folder), codes.values)
    audio = codec.decode(codes)
    assert (len(own), len(audio)) == (3192, 3200)
    assert np.array_equal(audio[:3192], own) and not audio[3192:].any()
    assert check_codec(codec).passed


def test_padding_in_a_batch_would_change_xcodec(codecs, folders):
    """Why clips go one by one: HuBERT normalises over the whole clip, so zeros behind it change its first codes too."""
    codec, model = codecs["xcodec"], stock("xcodec", folders["xcodec"])
    short, long = speech_like(0.5, 16_000, seed=5), speech_like(2, 16_000, seed=6)
    batch = torch.from_numpy(np.stack([np.pad(short, (0, len(long) - len(short))), long]))[:, None]
    with torch.no_grad():
        padded = model.encode(batch).audio_codes[0].T.numpy()[:25]
    (alone,), together = codec.encode([short]), codec.encode([short, long])
    assert np.array_equal(alone.values, together[0].values)
    assert (padded != alone.values).mean() > 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seconds", [0.2, 60.0])
def test_short_and_long_clips(codecs, name, seconds):
    codec = codecs[name]
    clip = speech_like(seconds, RATES[name], seed=7)
    (codes,) = codec.encode([clip])
    assert len(codes.values) == -(-len(clip) // HOPS[name])
    audio = codec.decode(codes)
    assert len(audio) == len(clip) and np.isfinite(audio).all()


@pytest.mark.parametrize("name", NAMES)
def test_silence(codecs, name):
    codec = codecs[name]
    (codes,) = codec.encode([np.zeros(RATES[name], np.float32)])
    assert np.isfinite(codec.latents(np.zeros(RATES[name], np.float32))).all()
    assert np.isfinite(codec.decode(codes)).all()


@pytest.mark.parametrize("name", NAMES)
def test_latents_and_audio_that_cannot_be_are_refused(codecs, name):
    codec = codecs[name]
    (codes,) = codec.encode([speech_like(0.5, RATES[name])])
    latent = codec.latent(codes.values)
    for bad in (latent[:, :-1], latent.astype(int), latent[:0], np.full_like(latent, np.nan)):
        with pytest.raises(InputError, match=r"latent must be finite floats of shape \(frames, "):
            codec.decode_latent(bad)
    for n_samples in (0, len(latent) * HOPS[name] + 1):
        with pytest.raises(InputError, match="n_samples must lie in 1 to"):
            codec.decode_latent(latent, n_samples)
    for layer in (-1, LAYERS[name]):
        with pytest.raises(InputError, match="layer must lie in 0 to"):
            codec.codebook(layer)
    with pytest.raises(InputError, match="frame 0"):
        codec.decode(Codes(np.full((1, LAYERS[name]), ENTRIES), 10))


@pytest.mark.parametrize("name", ["mimi", "encodec", "xcodec"])
def test_training_usage_is_the_checkpoints(codecs, folders, name):
    key = "cluster_usage" if name == "mimi" else "cluster_size"
    stored = {k: t for k, t in load_file(folders[name] / "model.safetensors").items() if k.endswith(key)}
    assert len(stored) == LAYERS[name] and codecs[name].certificate["training_usage"] == "in the checkpoint"
    assert "training_usage" not in codecs["dac"].certificate  # DAC's checkpoints do not count
    for layer in range(LAYERS[name]):
        usage = codecs[name].training_usage(layer)
        assert usage.shape == (ENTRIES,) and any(np.array_equal(usage, t.numpy()) for t in stored.values())
