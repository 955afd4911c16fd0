"""Mimi, EnCodec, DAC and X-codec by the commands, on recordings as they come: any rate, stereo, 0.2 s, a minute."""

import json

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from tiny_codecs import HOPS, LAYERS, RATES, build_tiny_codec, speech_like

from probecli.codec import main

pytestmark = pytest.mark.transformers

CLIPS = {
    "short": (0.2, 16_000, 1),
    "minute": (60.0, 16_000, 1),
    "telephone": (1.3, 8_000, 1),
    "studio": (1.1, 44_100, 2),
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two speakers, each with every clip, and one silent file."""
    root = tmp_path_factory.mktemp("speech")
    for i, speaker in enumerate(("anna", "bert")):
        (root / speaker).mkdir()
        for name, (seconds, rate_hz, n_channels) in CLIPS.items():
            wave = speech_like(seconds, rate_hz, seed=i + 1)
            soundfile.write(root / speaker / f"{name}.wav", np.stack([wave] * n_channels, axis=1), rate_hz)
    soundfile.write(root / "anna" / "nothing.wav", np.zeros(16_000), 16_000)
    return root


@pytest.mark.parametrize("name", list(LAYERS))
def test_recordings_as_they_come(recordings, tmp_path, name):
    """Frames are ceil(seconds x rate / hop) for each clip; silence is named and not scored; stderr stays empty."""
    folder = build_tiny_codec(name, tmp_path / name)
    arguments = ["tokenize", str(recordings), "--codec", str(folder), "--device", "cpu", "--json", "--quiet"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0 and done.stderr == "", done.output
    result = json.loads(done.stdout)
    frames = sum(int(np.ceil(round(seconds * RATES[name]) / HOPS[name])) for seconds, _, _ in CLIPS.values())
    assert [(row["speaker"], row["clips"], row["frames"]) for row in result["rows"]] == [
        ("anna", 4, frames),
        ("bert", 4, frames),
    ]
    assert [problem["name"] for problem in result["provenance"]["problems"]] == ["anna/nothing"]


def test_the_first_layers_by_the_command(recordings, tmp_path):
    folder = build_tiny_codec("mimi", tmp_path / "mimi")
    for text, exit_code, says in (("mimi:2", 0, "2 layers at 12.5 Hz"), ("mimi:9", 1, "must lie in 1 to 6; got 9")):
        codec = str(folder.parent / text)
        done = CliRunner().invoke(main, ["tokenize", str(recordings), "--codec", codec, "--device", "cpu", "--quiet"])
        assert done.exit_code == exit_code and says in done.output
