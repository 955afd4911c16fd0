"""What opening a tokenizer certifies, and that weights or settings that are not right are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen import build_model, build_tiny_qwen, voice

from codecprobe.codecs import qwen3_compat as compat
from codecprobe.codecs.qwen3_certificate import certify
from codecprobe.codecs.qwen3_tts import open_qwen3_tts
from codecprobe.codecs.registry import open_codec
from probecore.errors import CertificateError, InputError

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def own_folder(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def own_codec(folder):
    return open_qwen3_tts(folder, "cpu")


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_good_tokenizer_passes_every_check(own_codec):
    certificate = dict(own_codec.certificate)
    assert certificate.pop("sum_of_layers_relative_error") < 1e-6
    assert certificate.pop("code_agreement_in_one_batch") > 0.98  # rounding in a batch may flip a near tie
    assert certificate == {
        "device": "cpu",
        "dtype": "float32",
        "rope_frequencies_equal_formula": True,
        "encoder_attends_to_whole_clip": True,
        "entries_finite": True,
        "codes_independent_of_batch": True,
        "recomputed_code_agreement": 1.0,
        "decode_latent_equals_released_decode": True,
        "encoder_and_decoder_tables_equal": True,
        "training_usage_informative": True,
    }
    assert json.loads(json.dumps(own_codec.certificate)) == own_codec.certificate


def test_opening_prints_nothing_and_keeps_the_users_logging(folder, capfd):
    import transformers

    before = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    open_codec(folder, "cpu")
    assert capfd.readouterr() == ("", "")
    assert (transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()) == before


# --- C16: the two silent faults of transformers 5 -----------------------------------------------------------------


def test_rotary_frequencies_equal_the_formula_after_loading(own_codec):
    """The release leaves inv_freq uninitialised on 5.x; theta^(-2i/16) with theta 10000, in every rotary module."""
    expected = torch.tensor([10000.0 ** (-2 * i / 16) for i in range(8)])
    rotary = [module for module in own_codec.model.modules() if hasattr(module, "inv_freq")]
    assert len(rotary) >= 2
    for module in rotary:
        torch.testing.assert_close(module.inv_freq, expected, rtol=3e-7, atol=0)


def test_wrong_rotary_frequencies_are_refused(own_codec):
    own_codec.model.decoder.pre_transformer.rotary_emb.inv_freq.mul_(1.001)
    with pytest.raises(CertificateError, match="rotary frequencies must equal"):
        certify(own_codec)


def test_the_encoder_attends_to_the_whole_clip(tmp_path):
    """With one layer, steps from 259 on see one of the first 10 only if the config's window of 250 is not applied."""
    codec = open_qwen3_tts(build_tiny_qwen(tmp_path, num_hidden_layers=1), "cpu")
    transformer = compat.encoder_transformer(codec.model)
    steps = torch.randn(1, 600, 32, generator=torch.Generator().manual_seed(0))
    changed = steps.clone()
    changed[:, :10] += 10

    def reach():
        with torch.inference_mode():
            first, second = transformer(steps)[0], transformer(changed)[0]
        return torch.nonzero((first - second).abs().amax(dim=-1)[0] > 0).max().item()

    assert reach() > 300  # ten of 600 steps weigh little: far away their effect may round to nothing
    if compat.encoder_window(codec.model) is not None:  # where a window is applied: what the repair is for
        transformer.config.sliding_window = 250
        for layer in transformer.layers:
            layer.self_attn.sliding_window = 250
        assert 150 < reach() <= 258
        with pytest.raises(CertificateError, match="the encoder must attend to the whole clip"):
            certify(codec)


def test_the_loaded_model_decodes_as_the_one_that_was_saved(folder, own_codec):
    """Bit-equal codes, and audio, of a 15 s clip: nothing is lost on the way through the disk and the repairs."""
    built, wave = build_model(), voice(15.0, seed=3)
    if compat.encoder_window(built) is not None:
        compat._repair(built)
    frames = -(-len(wave) // 1920)
    padded = np.zeros((1, frames * 1920), np.float32)
    padded[0, : len(wave)] = wave
    with torch.inference_mode():
        codes = built.encode(torch.from_numpy(padded), torch.ones(padded.shape, dtype=torch.int32)).audio_codes[0]
        audio = built.decode(codes[None]).audio_values[0].numpy()
    found = own_codec.encode([wave])[0]
    np.testing.assert_array_equal(found.values, codes.numpy())
    np.testing.assert_array_equal(own_codec.decode(found), audio[: len(wave)])


# --- weights ------------------------------------------------------------------------------------------------------


def test_missing_weights_are_refused_not_made_up(own_folder):
    """transformers fills what a checkpoint lacks with random numbers and a warning."""
    weights = load_file(own_folder / "model.safetensors")
    lost = "decoder.pre_conv.conv.weight"
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, own_folder / "model.safetensors")
    with pytest.raises(CertificateError, match=f"1 tensors are not those of the checkpoint: {lost}"):
        open_qwen3_tts(own_folder, "cpu")


@pytest.mark.parametrize("damage", ["cut off", "absent", "no feature extractor"])
def test_files_that_cannot_be_loaded_are_refused_in_one_line(own_folder, damage):
    path = own_folder / "model.safetensors"
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "absent":
        path.unlink()
    else:
        (own_folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="cannot be loaded") as error:
        open_qwen3_tts(own_folder, "cpu")
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_refused(own_folder):
    edit_config(own_folder, lambda config: config["decoder_config"].update(decoder_dim=96))
    with pytest.raises(InputError, match="cannot be loaded"):
        open_qwen3_tts(own_folder, "cpu")


def test_weights_saved_in_half_precision_are_computed_in_float32(own_folder):
    weights = load_file(own_folder / "model.safetensors")
    half = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(half, own_folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("dtype", "torch_dtype"):
        edit_config(own_folder, lambda config, name=name: config.update({name: "bfloat16"}))
    codec = open_qwen3_tts(own_folder, "cpu")
    assert codec.certificate["dtype"] == "float32"


def test_entries_that_are_not_finite_are_refused(own_codec):
    own_codec._encoder_table(4).embed_sum[7] = float("nan")
    with pytest.raises(CertificateError, match="all table entries must be finite"):
        certify(own_codec)


def test_rates_and_layers_of_encoder_and_decoder_must_agree(own_folder):
    edit_config(own_folder, lambda config: config.update(output_sample_rate=48000))
    with pytest.raises(CertificateError, match=r"sample rates .* must agree; got 24000, 24000, 48000"):
        open_qwen3_tts(own_folder, "cpu")


def test_different_tables_are_reported_and_both_can_be_read(own_codec):
    own_codec.model.decoder.quantizer.rvq_rest.vq.layers[3]._codebook.embedding_sum.data[5] += 1
    assert certify(own_codec)["encoder_and_decoder_tables_equal"] is False
    assert not np.array_equal(own_codec.codebook(4), own_codec.decoder_codebook(4))


def test_the_hash_names_the_weights_and_their_meaning_not_the_place(folder, own_folder, tmp_path):
    """Equal for a copy elsewhere and fields that change nothing; other for one weight, or a setting that counts."""
    reference = open_qwen3_tts(folder, "cpu").info.weights_hash
    edit_config(own_folder, lambda config: config.update(transformers_version="0.0.0"))
    assert open_qwen3_tts(own_folder, "cpu").info.weights_hash == reference
    edit_config(own_folder, lambda config: config["decoder_config"].update(sliding_window=36))
    assert open_qwen3_tts(own_folder, "cpu").info.weights_hash != reference
    other = shutil.copytree(folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["decoder.pre_conv.conv.weight"][0, 0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert open_qwen3_tts(other, "cpu").info.weights_hash != reference


def test_a_hub_id_in_the_cache_opens_without_a_network_and_names_its_revision(folder, tmp_path, monkeypatch):
    """The hub's layout: models--OWNER--NAME/refs/main names the snapshot. HF_HUB_OFFLINE is set for every test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, revision = tmp_path / "models--Qwen--Qwen3-TTS-Tokenizer-12Hz", "0123456789abcdef" + 24 * "0"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(folder, repository / "snapshots" / revision)
    codec = open_codec("qwen3-tts-12hz", "cpu")
    assert codec.info.source == "Qwen/Qwen3-TTS-Tokenizer-12Hz@0123456789ab"
    assert codec.info.weights_hash == open_qwen3_tts(folder, "cpu").info.weights_hash
