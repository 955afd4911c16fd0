"""What every test shares: one thread a process, no network, a cache of its own, and where real data lies."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REAL_DATA = Path(os.environ.get("CODECPROBE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory: pytest.TempPathFactory):
    """Keep the user's cache out of the tests, and the tests out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("CODECPROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def librispeech() -> Path:
    """Return the folder of real speech in LibriSpeech's layout."""
    folder = REAL_DATA / "LibriSpeech"
    if not folder.is_dir():
        pytest.skip(f"no real speech at {folder}: set CODECPROBE_DATA to a folder that holds LibriSpeech/")
    return folder
