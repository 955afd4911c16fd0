"""Opening Mimi, EnCodec, DAC and X-codec: every tensor is the file's, in float32; what cannot be probed is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_codecs import LAYERS, RATES, build_tiny_codec, speech_like

from codecprobe.codecs import residual_certificate
from codecprobe.codecs.dac import DacCodec
from codecprobe.codecs.encodec import EncodecCodec
from codecprobe.codecs.mimi import MimiCodec
from codecprobe.codecs.registry import open_codec
from codecprobe.codecs.xcodec import XcodecCodec
from probecore.errors import CertificateError, InputError

pytestmark = pytest.mark.transformers
NAMES = tuple(LAYERS)
ADAPTERS = {"mimi": MimiCodec, "encodec": EncodecCodec, "dac": DacCodec, "xcodec": XcodecCodec}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("codecs")
    return {name: build_tiny_codec(name, root / name) for name in NAMES}


@pytest.fixture
def copy_of(folders, tmp_path):
    def copy(name):
        return shutil.copytree(folders[name], tmp_path / name)

    return copy


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_told_by_its_model_type(folders, name, capfd):
    codec = open_codec(folders[name], "cpu")
    assert type(codec) is ADAPTERS[name]
    assert capfd.readouterr() == ("", "")  # no bar, no warning, nothing of ours


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_is_not_in_the_file_is_refused(copy_of, name):
    """transformers fills it with random numbers and goes on."""
    folder = copy_of(name)
    tensors = load_file(folder / "model.safetensors")
    gone = next(key for key in sorted(tensors) if "quantizer" in key and tensors[key].ndim == 2)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CertificateError, match=r"1 tensors are not those of the file: .*give a folder whose weights fit"
    ):
        open_codec(folder, "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_size_are_refused(copy_of, name):
    folder = copy_of(name)
    if name == "xcodec":
        edit_config(folder, codebook_size=64)
    else:
        edit_config(folder, codebook_size=64, num_filters=8, encoder_hidden_size=8)
    with pytest.raises((InputError, CertificateError)) as error:
        open_codec(folder, "cpu")
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_refused(copy_of):
    folder = copy_of("dac")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no model.safetensors: give a folder as save_pretrained writes it"):
        open_codec(folder, "cpu")
    (folder / "model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(InputError, match="cannot be loaded as DacModel: ") as error:
        open_codec(folder, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_hash_follows_the_weights_and_not_the_folder(folders, copy_of, name):
    folder = copy_of(name)
    assert open_codec(folder, "cpu").info.weights_hash == open_codec(folders[name], "cpu").info.weights_hash
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in sorted(tensors) if key.endswith("bias"))
    tensors[key][0] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_codec(folder, "cpu").info.weights_hash != open_codec(folders[name], "cpu").info.weights_hash


def test_names_of_weight_normalisation_as_files_before_2023_have_them(folders, copy_of):
    """facebook/encodec_24khz holds weight_g and weight_v."""
    folder = copy_of("encodec")
    tensors = load_file(folder / "model.safetensors")
    old = {
        key.replace(".parametrizations.weight.original0", ".weight_g").replace(
            ".parametrizations.weight.original1", ".weight_v"
        ): tensor
        for key, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    first, second = open_codec(folder, "cpu"), open_codec(folders["encodec"], "cpu")
    clip = speech_like(0.5, RATES["encodec"])
    assert first.info.weights_hash == second.info.weights_hash
    assert np.array_equal(first.encode([clip])[0].values, second.encode([clip])[0].values)


@pytest.mark.parametrize("name", NAMES)
def test_float32_whatever_the_file_and_the_default_are(copy_of, name):
    """A file in bfloat16 is read into float32 under a default of float16; the default is left as it was."""
    folder = copy_of(name)
    tensors = load_file(folder / "model.safetensors")
    half = {key: t.bfloat16() if t.is_floating_point() else t for key, t in tensors.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, torch_dtype="bfloat16")
    torch.set_default_dtype(torch.float16)
    try:
        codec = open_codec(folder, "cpu")
        codes = codec.encode([speech_like(0.5, RATES[name])])[0]
        assert torch.get_default_dtype() == torch.float16
    finally:
        torch.set_default_dtype(torch.float32)
    assert codec.certificate["dtype"] == "float32"
    assert codec.decode(codes).dtype == np.float32


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"chunk_length_s": 1.0, "overlap": 0.01}, "1 channels, pieces of 1 s, without gains"),
        ({"normalize": True}, "1 channels, one piece, with gains"),
        ({"audio_channels": 2, "chunk_length_s": 1.0, "normalize": True}, "2 channels, pieces of 1 s, with gains"),
    ],
)
def test_the_48_khz_encodec_is_refused_with_the_reason(tmp_path, fields, says):
    """Pieces overlap and carry a gain each: no single line of frames, so no layer to probe."""
    from transformers import EncodecConfig, EncodecModel

    small = {"hidden_size": 8, "num_filters": 2, "codebook_size": 16, "codebook_dim": 8, "target_bandwidths": [0.6]}
    EncodecModel(EncodecConfig(**small, **fields)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"must be mono.*{says}.*give the 24 kHz model") as error:
        open_codec(tmp_path, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("xcodec2", "one stream of finite scalar codes"),
        ("neucodec", "one stream of finite scalar codes"),
        ("vibevoice_acoustic_tokenizer", "continuous latents and no codes"),
        ("moshi", "a language model around Mimi"),
    ],
)
def test_codecs_without_layers_are_refused_with_the_reason(tmp_path, model_type, reason):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(InputError, match=reason):
        open_codec(tmp_path)


@pytest.mark.parametrize("number", [0, 7, 99])
def test_a_number_of_layers_the_model_does_not_have_is_refused(folders, number):
    with pytest.raises(InputError, match=f"the number of layers must lie in 1 to 6; got {number}"):
        open_codec(f"{folders['mimi']}:{number}", "cpu")


def test_codecs_that_cannot_be_cut_say_so(tmp_path):
    with pytest.raises(InputError, match="embedded:2: this codec decodes all of its layers or none"):
        open_codec("embedded:2")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_tts_tokenizer_12hz"}))
    with pytest.raises(InputError, match=":8: this codec decodes all of its layers or none"):
        open_codec(f"{tmp_path}:8")


def test_a_folder_with_a_colon_in_its_name_is_a_folder(folders, tmp_path):
    folder = shutil.copytree(folders["dac"], tmp_path / "dac:2")
    assert open_codec(folder, "cpu").info.n_layers == LAYERS["dac"]
    assert open_codec(f"{folder}:2", "cpu").info.n_layers == 2


def test_a_gpu_that_is_not_there_is_refused(folders):
    with pytest.raises(InputError, match="--device cuda:99"):
        open_codec(folders["dac"], "cuda:99")


class OneChain(MimiCodec):
    """The wrong Mimi: layer 0 as the start of the chain of all layers."""

    def _groups(self, n_layers):
        return (tuple(range(n_layers)),)


class ProjectionLeftOut(DacCodec):
    """The wrong DAC: the bias of a layer's projection forgotten."""

    def _term(self, layer, index):
        return super()._term(layer, index) - self._quantisers[layer].out_proj.bias[:, None]


class Unmapped(XcodecCodec):
    """The wrong X-codec: the map behind the sum of the layers applied twice over its input."""

    def _decode(self, latent):
        return super()._decode(2 * latent)


class Chained(EncodecCodec):
    """The wrong EnCodec: the codes of the layers in another order."""

    def _encode(self, waveform):
        return super()._encode(waveform).flip(0)


class InTraining(DacCodec):
    """A DAC in train mode, which drops layers by chance."""

    def _prepare(self, source):
        self.model.train()


class CutShort(XcodecCodec):
    """A decoder that leaves out whole frames."""

    def _model_decode(self, index):
        return super()._model_decode(index)[:-400]


class WrongHop(EncodecCodec):
    """Frames of half the length they have."""

    @property
    def _hop_samples(self):
        return super()._hop_samples // 2


@pytest.mark.parametrize(
    ("adapter", "name", "rule"),
    [
        (OneChain, "mimi", "chosen entries must be the nearest of their residual chain"),
        (ProjectionLeftOut, "dac", "chosen entries must be the nearest|terms must add up"),
        (Unmapped, "xcodec", "decode_latent must equal the model's own decode"),
        (Chained, "encodec", "chosen entries must be the nearest of their residual chain"),
        (InTraining, "dac", "the model must be in eval mode"),
        (WrongHop, "encodec", "12.6 frames of samples must give 13 frames of 4 codes; got"),
        (CutShort, "xcodec", "13 frames must decode to 4160 samples, or less than a frame fewer; got 3760"),
    ],
)
def test_an_adapter_that_is_wrong_is_not_certified(folders, adapter, name, rule):
    with pytest.raises(CertificateError, match=rule):
        adapter(folders[name], "cpu")


def test_the_certificate_tells_a_real_miss_from_rounding(folders):
    """One code exchanged for another entry misses the nearest by far more than float32 can."""
    codec = open_codec(folders["encodec"], "cpu")
    clip = speech_like(0.5, RATES["encodec"])
    codes = codec.encode([clip])[0].values
    assert codec.nearest_gap(clip, codes) <= residual_certificate.TIE
    wrong = codes.copy()
    wrong[3, 0] = (wrong[3, 0] + 1) % codec.info.codebook_sizes[0]
    assert codec.nearest_gap(clip, wrong) > 10 * residual_certificate.TIE


@pytest.mark.parametrize(
    ("inside", "published"),
    [
        ("encoder.encoder_seanet.layers.0.conv.weight", "encoder.layers.0.conv.weight"),
        ("encoder.encoder_transformer.layers.0.mlp.fc1.weight", "encoder_transformer.layers.0.mlp.fc1.weight"),
        ("encoder.downsample.conv.weight", "downsample.conv.weight"),
        ("decoder.upsample.conv.weight", "upsample.conv.weight"),
        ("decoder.layers.0.conv.weight", "decoder.layers.0.conv.weight"),
        ("quantizer.semantic_residual_vector_quantizer.input_proj.weight",) * 2,
    ],
)
def test_published_names_of_mimi(inside, published):
    """From transformers 5.21 on the halves of Mimi are modules of their own; files keep the old names."""
    assert MimiCodec.published_name(inside) == published
