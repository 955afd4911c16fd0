"""The real download path against a server on this machine: resume by Range, refused ranges, wrong file, no server."""

import hashlib
import io
import socket
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from codecprobe.corpora import download
from codecprobe.corpora.download import SHA256, SOURCE, download_librispeech
from codecprobe.corpora.librispeech import read_librispeech
from codecprobe.corpora.registry import open_corpus
from probecore.errors import InputError

SUBSET = "dev-clean"


def archive():
    """A tiny tar.gz in the layout of LibriSpeech, large enough to be cut in half."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:

        def add(name, data):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

        add("LibriSpeech/SPEAKERS.TXT", b"60 | M | dev-clean | 20.18 | |CBW|Simon\n61 | F | dev-clean | 1 | X\n")
        for speaker in (60, 61):
            sound = io.BytesIO()
            samples = 0.1 * np.random.default_rng(speaker).standard_normal(8_000)
            soundfile.write(sound, samples, 16_000, format="FLAC")
            stem = f"LibriSpeech/{SUBSET}/{speaker}/7/{speaker}-7"
            add(f"{stem}-0000.flac", sound.getvalue())
            add(f"{stem}.trans.txt", f"{speaker}-7-0000 HELLO\n".encode())
    return buffer.getvalue()


class Server:
    """Serves one file; `ranges` honours Range, `stop_after` breaks the first answer off; `asked` records the ranges."""

    def __init__(self, content, ranges=True, stop_after=None, shift=0):
        self.content, self.ranges, self.stop_after, self.shift, self.asked = content, ranges, stop_after, shift, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and outer.ranges else 0
                if start >= len(outer.content):
                    self.send_error(416 if outer.content else 404)
                    return
                body = outer.content[start:]
                self.send_response(206 if asked and outer.ranges else 200)
                self.send_header("Content-Length", str(len(body)))
                if asked and outer.ranges:
                    first = start + outer.shift
                    self.send_header("Content-Range", f"bytes {first}-{len(outer.content) - 1}/{len(outer.content)}")
                self.end_headers()
                stop, outer.stop_after = outer.stop_after, None
                self.wfile.write(body[:stop])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def content():
    return archive()


@pytest.fixture
def fetch(tmp_path, content):
    def run(server, checksum=None, **more):
        checksums = {SUBSET: checksum or hashlib.sha256(content).hexdigest()}
        return download_librispeech(SUBSET, tmp_path, source=server.url, checksums=checksums, quiet=True, **more)

    return run


def test_a_subset_is_downloaded_unpacked_and_then_used_from_the_cache(fetch, content, tmp_path):
    with Server(content) as server:
        folder = fetch(server)
        assert fetch(server) == folder and server.asked == [None]
    corpus = read_librispeech(folder)
    assert [clip.clip_id for clip in corpus.clips] == ["60-7-0000", "61-7-0000"]
    assert [clip.labels["sex"] for clip in corpus.clips] == ["M", "F"] and corpus.problems == ()
    assert sorted(path.name for path in (tmp_path / "librispeech").iterdir()) == ["LibriSpeech"]
    assert open_corpus(f"librispeech:{SUBSET}", cache=tmp_path).clips[0].text == "HELLO"


def test_an_interrupted_download_goes_on_where_it_stopped(fetch, content, tmp_path):
    half = len(content) // 2
    with Server(content, stop_after=half) as server:
        with pytest.raises(InputError, match=rf"ended after {half:,} of {len(content):,} bytes.*run again to go on"):
            fetch(server)
        assert (tmp_path / "librispeech" / f"{SUBSET}.tar.gz.part").stat().st_size == half
        assert len(read_librispeech(fetch(server)).clips) == 2
        assert server.asked == [None, f"bytes={half}-"]


def test_a_server_without_ranges_is_read_from_the_start(fetch, content):
    with Server(content, ranges=False, stop_after=100) as server:
        with pytest.raises(InputError, match="run again"):
            fetch(server)
        assert len(read_librispeech(fetch(server)).clips) == 2


def test_a_range_that_is_not_the_one_asked_for_is_refused(fetch, content):
    with Server(content, stop_after=100, shift=7) as server:
        with pytest.raises(InputError):
            fetch(server)
        with pytest.raises(InputError, match=r"asked for bytes from 100, offered bytes 107-"):
            fetch(server)


def test_a_download_that_was_complete_but_not_unpacked_is_not_fetched_again(fetch, content, tmp_path):
    part = tmp_path / "librispeech" / f"{SUBSET}.tar.gz.part"
    part.parent.mkdir()
    part.write_bytes(content)
    (tmp_path / "librispeech" / f"{SUBSET}.unpacking").mkdir()  # left by a run that was killed
    with Server(content) as server:
        assert len(read_librispeech(fetch(server)).clips) == 2
        assert server.asked == [f"bytes={len(content)}-"]


def test_another_file_than_the_published_one_is_thrown_away(fetch, content, tmp_path):
    with Server(content) as server, pytest.raises(InputError, match=r"must have SHA-256 000000000000\.\.\.; got"):
        fetch(server, checksum="0" * 64)
    assert list((tmp_path / "librispeech").iterdir()) == []


def test_a_failing_unpack_keeps_the_download_and_leaves_no_half_corpus(fetch, content, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr("torchaudio.datasets.LIBRISPEECH", broken)
    with Server(content) as server, pytest.raises(RuntimeError, match="disk full"):
        fetch(server)
    assert [path.name for path in (tmp_path / "librispeech").iterdir()] == [f"{SUBSET}.tar.gz.part"]


def test_no_network_is_one_line_with_the_next_step_and_does_not_hang(tmp_path):
    """A closed port is refused at once; a server that accepts and never answers ends with the time limit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        InputError, match=r"cannot download .*dev-clean\.tar\.gz .*give its folder LibriSpeech/dev-clean"
    ):
        download_librispeech(SUBSET, tmp_path, source=closed, quiet=True)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        start = time.monotonic()
        with pytest.raises(InputError, match="timed out"):
            url = f"http://127.0.0.1:{mute.getsockname()[1]}"
            download_librispeech(SUBSET, tmp_path, source=url, timeout_s=0.3, quiet=True)
        assert time.monotonic() - start < 10


def test_a_page_that_is_not_there_is_an_error_of_one_line(content, tmp_path):
    with Server(b"") as server, pytest.raises(InputError, match="Not Found") as caught:
        download_librispeech(SUBSET, tmp_path, source=server.url, quiet=True)
    assert "\n" not in str(caught.value)


def test_checksums_and_source_are_those_torchaudio_keeps():
    from torchaudio.datasets.librispeech import _CHECKSUMS, _DATA_SUBSETS

    assert set(SHA256) == set(_DATA_SUBSETS)
    kept = {url.rsplit("/", 1)[1].removesuffix(".tar.gz"): value for url, value in _CHECKSUMS.items()}
    assert kept == dict(SHA256)
    assert all(url.split("://")[1].startswith(SOURCE.split("://")[1]) for url in _CHECKSUMS)


def test_the_progress_bar_goes_to_stderr(content, tmp_path, capsys):
    with Server(content) as server:
        checksums = {SUBSET: hashlib.sha256(content).hexdigest()}
        download.download_librispeech(SUBSET, tmp_path, source=server.url, checksums=checksums)
    captured = capsys.readouterr()
    assert captured.out == "" and f"{SUBSET}.tar.gz" in captured.err
