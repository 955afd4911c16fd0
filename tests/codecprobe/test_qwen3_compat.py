"""The unmodified qwen-tts package: which versions are taken, and that importing it leaves no trace."""

import json
import os
import subprocess
import sys

import pytest
import torch

from codecprobe.codecs import qwen3_compat as compat
from probecore.errors import CertificateError, MissingExtraError

pytestmark = pytest.mark.transformers


def run(code):
    """Run code in a fresh interpreter; return what it wrote to stdout and stderr."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def pretend(monkeypatch):
    """Pretend that other versions are installed."""
    real = compat.version

    def install(**versions):
        names = {name.replace("_", "-"): number for name, number in versions.items()}

        def version(name):
            if name in names and names[name] is None:
                raise compat.PackageNotFoundError(name)
            return names[name] if name in names else real(name)

        monkeypatch.setattr(compat, "version", version)
        compat._check_versions.cache_clear()

    yield install
    compat._check_versions.cache_clear()


@pytest.mark.parametrize("found", ["4.57.3", "4.57.6", "5.15.0", "5.17.0", "5.20.1", "5.23.0"])
def test_supported_transformers_are_taken(pretend, found):
    pretend(transformers=found, qwen_tts="0.1.1")
    compat._check_versions()


@pytest.mark.parametrize("found", ["4.56.2", "4.57.2", "4.58.0", "5.0.0", "5.10.1", "5.14.9", "5.24.0", "6.0.0"])
def test_other_transformers_are_refused_in_one_line(pretend, found):
    pretend(transformers=found, qwen_tts="0.1.1")
    with pytest.raises(CertificateError, match=rf"must be 4.57.3 or 5.15 to 5.23 for this codec; got {found}") as error:
        compat._check_versions()
    assert "\n" not in str(error.value)


def test_a_missing_or_other_package_is_named(pretend):
    pretend(qwen_tts=None, transformers="4.57.3")
    with pytest.raises(MissingExtraError, match=r"needs the 'qwen' extra: pip install 'codecprobe\[qwen\]'"):
        compat._check_versions()
    pretend(qwen_tts=None, transformers="5.17.0")
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps qwen-tts==0\.1\.1"):
        compat._check_versions()
    pretend(qwen_tts="0.0.5")
    with pytest.raises(CertificateError, match=r"qwen-tts must be 0.1.1.*got 0.0.5"):
        compat._check_versions()
    pretend(qwen_tts_hf="0.1.1.post1")
    with pytest.raises(CertificateError, match="qwen-tts-hf is installed, a fork with the same import name"):
        compat._check_versions()


TRACELESS = """
import json, sys
from codecprobe.codecs import qwen3_compat as compat
import transformers.utils.generic as generic
before = getattr(generic, "check_model_inputs", None)
qwen_tts = compat.import_qwen_tts()
assert compat.import_qwen_tts() is qwen_tts
import transformers
from transformers import AutoFeatureExtractor
def placeholder(value): return isinstance(value, compat._Placeholder)
left = [name for name, module in sys.modules.items() if placeholder(module)]
left += [name for name, module in list(sys.modules.items()) if name.startswith(("transformers", "torchaudio"))
         and any(placeholder(value) for value in vars(module).values())]
print(json.dumps({"left": left, "patched": getattr(generic, "check_model_inputs", None) is not before,
                  "sox": "sox" in sys.modules}))
"""


def test_importing_leaves_no_placeholder_no_patch_and_prints_nothing():
    """C17: sox's process and the flash-attention banner stay away; stdout holds our own line alone."""
    out, err = run(TRACELESS)
    assert json.loads(out) == {"left": [], "patched": False, "sox": False}
    assert "SoX" not in err and "flash" not in err


BARE = """
import sys, tempfile
from importlib.machinery import PathFinder
class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in ("librosa", "einops", "soundfile", "onnxruntime", "sox")
        return None if absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Absent
from tiny_qwen import build_tiny_qwen, voice
from codecprobe.codecs.registry import open_codec
with tempfile.TemporaryDirectory() as folder:
    from pathlib import Path
    codec = open_codec(build_tiny_qwen(Path(folder)), "cpu")
    codes = codec.encode([voice(0.5)])[0]
    assert len(codec.decode(codes)) == 12000
from qwen_tts.inference import qwen3_tts_tokenizer
try:
    qwen3_tts_tokenizer.librosa.resample(None)
except ImportError as error:
    print(error)
"""


def test_it_works_where_librosa_einops_and_soundfile_are_absent():
    """C12: a call that really needs one of them says so."""
    out, _ = run(BARE)
    assert out == "librosa.resample() was called but librosa is not installed\n"


def test_rope_formula_against_powers_and_refusal_of_other_kinds():
    """theta^(-2i/d) in float64, to float32 rounding; a scaled RoPE is refused instead of guessed."""

    class Config:
        rope_theta = 10000.0
        rope_parameters = None

    expected = torch.tensor([10000.0 ** (-2 * i / 16) for i in range(8)], dtype=torch.float64)
    found = compat.rope_frequencies(Config, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=0)
    Config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e6}
    with pytest.raises(CertificateError, match="asks for 'yarn'"):
        compat.rope_frequencies(Config, 8)


def test_names_of_tensors_are_the_published_ones():
    assert compat.published_name("encoder.encoder.encoder_seanet.layers.0.conv.weight") == (
        "encoder.encoder.layers.0.conv.weight"
    )
    for name in (
        "encoder.encoder.layers.0.conv.weight",
        "decoder.pre_conv.conv.weight",
        "encoder.downsample.conv.weight",
    ):
        assert compat.published_name(name) == name
    assert compat.published_name("encoder.encoder.downsample.conv.weight") == "encoder.downsample.conv.weight"
