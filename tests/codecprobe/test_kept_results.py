"""Results of commands are kept: the same question gets the same bytes, any other question is computed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

import codecprobe.dynamics
from probecli import kept
from probecli.codec import main
from probecore import InputError

ASKED = {"corpus": "embedded", "codec": "embedded", "seed": 0, "quiet": True}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CODECPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def speech(folder: Path) -> Path:
    """Two speakers with two sessions of two clips of noise, as a table."""
    rows = ["path,speaker,session,style"]
    for i in range(8):
        wave = np.random.default_rng(i).normal(scale=0.1, size=16_000).astype(np.float32)
        soundfile.write(folder / f"{i}.wav", wave, 16_000)
        rows.append(f"{i}.wav,s{i // 4},s{i // 4}-{i // 2 % 2},plain")
    table = folder / "clips.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_the_second_run_prints_and_saves_the_same_bytes_and_computes_nothing(cache, tmp_path, monkeypatch):
    ask = ["timescales", "--corpus", str(speech(tmp_path)), "--bootstrap", "100", "--permutations", "0", "--out"]
    first, _ = run(*ask, str(tmp_path / "a"))
    monkeypatch.setattr(codecprobe.dynamics, "code_timescales", lambda **_: pytest.fail("it was computed again"))
    second, said = run(*ask, str(tmp_path / "b"))
    assert second == first and "--fresh" in said
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    run(*ask[:-1], "--quiet", "--json")  # how a result is shown is not part of the question
    monkeypatch.undo()


def test_fresh_computes_anew_and_a_damaged_file_is_replaced(cache, tmp_path, monkeypatch):
    ask = ["timescales", "--corpus", str(speech(tmp_path)), "--bootstrap", "100", "--permutations", "0"]
    first, _ = run(*ask)
    calls = []
    whole = codecprobe.dynamics.code_timescales
    monkeypatch.setattr(codecprobe.dynamics, "code_timescales", lambda **asked: calls.append(1) or whole(**asked))
    assert run(*ask, "--fresh")[0] == first and len(calls) == 1
    (kept_file,) = (cache / "results").iterdir()
    kept_file.write_text(kept_file.read_text()[:100])
    assert run(*ask)[0] == first and len(calls) == 2
    assert json.loads(kept_file.read_text())["kind"] == "timescales"
    assert run(*ask)[0] == first and len(calls) == 2


def test_whatever_changes_the_answer_changes_the_key(tmp_path, monkeypatch):
    """Settings, analysis, seed, audio, labels, broken files, codec files, versions, own source: each by itself."""
    table = speech(tmp_path)
    asked = ASKED | {"corpus": str(table)}
    keys = [kept._key("m:f", asked)]
    assert kept._key("m:f", asked) == keys[0] == kept._key("m:f", asked | {"quiet": False})
    keys.append(kept._key("m:g", asked))
    keys.append(kept._key("m:f", asked | {"seed": 1}))
    keys.append(kept._key("m:f", asked | {"codec": "embedded-flat"}))
    table.write_text(table.read_text().replace("plain", "lively", 1))
    keys.append(kept._key("m:f", asked))
    soundfile.write(tmp_path / "0.wav", np.zeros(16_000, np.float32), 16_000)
    keys.append(kept._key("m:f", asked))
    (tmp_path / "1.wav").write_bytes(b"broken")
    keys.append(kept._key("m:f", asked))
    monkeypatch.setattr("probecore.provenance.versions", lambda: {"torch": "0"})
    keys.append(kept._key("m:f", asked))
    monkeypatch.setattr(kept, "_source_hash", lambda: "another source")
    keys.append(kept._key("m:f", asked))
    codec = tmp_path / "codec"
    codec.mkdir()
    for size in (1, 2):
        (codec / "model.safetensors").write_bytes(b"w" * size)
        keys.append(kept._key("m:f", asked | {"codec": str(codec)}))
    assert len(set(keys)) == len(keys)


def test_the_source_hash_sees_our_files():
    assert kept._source_hash() == kept._source_hash()
    names = {Path(sys.modules[name].__file__).parent.name for name in kept.PACKAGES}
    assert names == set(kept.PACKAGES)


def test_a_model_whose_files_are_not_known_is_never_answered_from_the_cache(tmp_path):
    assert not kept._key("m:f", ASKED | {"asr": "openai/whisper-tiny"})
    (tmp_path / "config.json").write_text("{}")
    assert kept._key("m:f", ASKED | {"asr": str(tmp_path)})


def test_what_cannot_be_opened_is_refused_as_before(cache):
    done = CliRunner().invoke(main, ["usage", "--corpus", "nowhere"])
    assert done.exit_code == 1 and "no corpus 'nowhere'" in done.stderr
    with pytest.raises(InputError, match="no corpus"):
        kept._key("m:f", ASKED | {"corpus": "nowhere"})
    done = CliRunner().invoke(main, ["usage", "--codec", "nothing"])
    assert done.exit_code == 1 and "which is none of them" in done.stderr
