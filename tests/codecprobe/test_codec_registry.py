"""Codecs by name, folder and hub id; what cannot be opened is refused in one line with the next step."""

import json
import subprocess
import sys

import pytest

from codecprobe.codecs import registry
from codecprobe.codecs.registry import CODECS, open_codec
from probecore.errors import InputError, ProbeError


def config_folder(tmp_path, config):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("name", ["nonsense", "qwen3", "a/b/c", "./no/such/folder", "/no/such/folder", ""])
def test_unknown_names_are_refused_with_what_there_is(name):
    with pytest.raises(InputError, match=f"codec must be one of {', '.join(CODECS)}, a folder"):
        open_codec(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{ not json", "config.json is not valid JSON"),
        ({"architectures": ["X"]}, "names no model_type"),
        ([1], "names no model_type"),
        ({"model_type": 3}, "names no model_type"),
        ({"model_type": "llama"}, "model_type 'llama' is no codec known here .known: qwen3_tts_tokenizer_12hz."),
        ({"model_type": "qwen3_tts"}, "is a whole Qwen3-TTS model, not a codec: give its subfolder speech_tokenizer"),
        ({"model_type": "qwen3_tts_tokenizer_25hz"}, "is the 25 Hz tokenizer"),
    ],
)
def test_folders_that_hold_no_known_codec_are_refused(tmp_path, config, message):
    with pytest.raises(InputError, match=message) as error:
        open_codec(config_folder(tmp_path, config))
    assert "\n" not in str(error.value)


def test_a_folder_without_a_config_is_no_codec(tmp_path):
    with pytest.raises(InputError, match=r"not a codec folder, it has no config.json"):
        open_codec(tmp_path)


@pytest.mark.parametrize("name", ["qwen3-tts-12hz", "Qwen/Qwen3-TTS-Tokenizer-12Hz", "nobody/nothing"])
def test_a_hub_id_without_a_network_gives_the_next_step(name, tmp_path, monkeypatch):
    """HF_HUB_OFFLINE is set for every test; the hub's cache is made empty here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="give a folder as save_pretrained writes it, or run once with a network") as e:
        open_codec(name)
    assert "\n" not in str(e.value)
    assert "/" in str(e.value).partition(" ")[0]


def test_a_hub_id_in_the_cache_is_told_apart_by_its_model_type(tmp_path, monkeypatch):
    """The hub's layout, written by hand: models--OWNER--NAME/refs/main names the snapshot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--nobody--gpt"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    snapshot = config_folder(repository / "snapshots" / ("0" * 40), {"model_type": "gpt2"})
    with pytest.raises(InputError, match="is not in the local hub cache"):  # half a snapshot is none
        open_codec("nobody/gpt")
    for name in ("model.safetensors", "preprocessor_config.json"):
        (snapshot / name).touch()
    with pytest.raises(InputError, match="nobody/gpt: model_type 'gpt2' is no codec known here"):
        open_codec("nobody/gpt")


def test_a_folder_wins_over_a_hub_id_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    config_folder(tmp_path / "owner" / "name", {"model_type": "gpt2"})
    with pytest.raises(InputError, match="owner/name: model_type 'gpt2'"):
        open_codec("owner/name")


def test_every_name_is_described_and_every_refusal_is_ours():
    assert set(CODECS) == {"embedded", "embedded-flat", "qwen3-tts-12hz", "mimi", "encodec", "dac", "xcodec"}
    assert set(registry._HUB_IDS) == set(CODECS) - {"embedded", "embedded-flat"}
    assert all(registry._HUB_IDS[name] in CODECS[name] for name in registry._HUB_IDS)
    assert issubclass(InputError, ProbeError)
    assert all(text and "\n" not in text for text in CODECS.values())


def test_looking_a_codec_up_imports_nothing_heavy():
    code = (
        "import sys, codecprobe; from codecprobe import open_codec, tokenize, check_codec\n"
        "from codecprobe.codecs import registry, conformance\n"
        "heavy = {'torch', 'transformers', 'qwen_tts', 'datasets', 'sklearn', 'huggingface_hub', 'soundfile'}\n"
        "print(sorted(heavy & set(sys.modules)), callable(tokenize))"
    )
    path = ":".join(entry for entry in sys.path if entry)
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[] True", done.stderr


def test_adapters_are_named_by_model_type():
    assert all(target.count(":") == 1 for target in registry._MODEL_TYPES.values())
