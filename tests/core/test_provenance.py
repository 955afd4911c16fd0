"""Hashes that name what a result was made from: they see every change, and no path."""

import hashlib
import json
from pathlib import Path

import pytest

from probecore.provenance import digest, digest_of_files, digest_of_record, provenance, versions


def test_the_hash_is_blake2b_of_lengths_and_parts() -> None:
    """Written out once more by hand, so that a change of the format is seen."""
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in (b"ab", b"c"))
    assert digest("ab", b"c") == hashlib.blake2b(whole, digest_size=8).hexdigest()


def test_where_a_part_ends_counts() -> None:
    made = {digest(), digest(""), digest("", ""), digest("ab"), digest("a", "b"), digest("b", "a"), digest("ab", "")}
    assert len(made) == 7


def test_the_hash_of_files_counts_names_and_contents_but_not_folders(tmp_path: Path) -> None:
    def written(folder: str, **files: str) -> list[Path]:
        (tmp_path / folder).mkdir()
        paths = [tmp_path / folder / name for name in files]
        for path, text in zip(paths, files.values(), strict=True):
            path.write_text(text)
        return paths

    one = digest_of_files(written("one", a="x", b="y"))
    assert digest_of_files(reversed(written("two", a="x", b="y"))) == one
    assert digest_of_files(written("three", a="y", b="x")) != one
    assert digest_of_files(written("four", a="x", c="y")) != one
    assert digest_of_files(written("five", a="x")) != one


def test_the_hash_of_a_record_does_not_depend_on_the_order_of_its_keys() -> None:
    assert digest_of_record({"a": 1, "b": [1, 2]}) == digest_of_record({"b": [1, 2], "a": 1})
    assert digest_of_record({"a": 1, "b": [2, 1]}) != digest_of_record({"a": 1, "b": [1, 2]})
    assert digest_of_record({"a": 1}) != digest_of_record({"a": "1"})


def test_a_provenance_is_json_without_clock_and_path() -> None:
    record = provenance(seed=3, device="cpu", command="codecprobe speaker-probe", data_hash="ab")
    assert record == provenance(seed=3, device="cpu", command="codecprobe speaker-probe", data_hash="ab")
    assert list(record) == ["command", "seed", "device", "versions", "data_hash"]
    assert str(Path.cwd()) not in json.dumps(record)


def test_versions_name_what_can_change_a_number() -> None:
    found = versions()
    assert {"python", "numpy", "torch", "scikit-learn"} <= set(found)


def test_a_package_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probecore.provenance.PACKAGES", ("numpy", "no-such-package"))
    assert set(versions()) == {"python", "numpy"}
