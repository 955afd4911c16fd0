"""`codecprobe reproduce qwen3-tts-notes` as a whole: known verdicts, refused designs, real speech."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from codecprobe import claims
from codecprobe.claims import reproduce_notes
from codecprobe.corpora.embedded import embedded_corpus
from codecprobe.notes_claims import CLAIMS
from codecprobe.power import design_power
from probecli.codec_reproduce import reproduce
from probecore.verdicts import CONTRADICTED, NOT_DECIDED, SUPPORTED

PLANTED = {
    "speaker-1": SUPPORTED,  # layers 1-2 carry the voice, layer 0 the content
    "speaker-1-size": CONTRADICTED,  # and far more of it than 30 %
    "speaker-0-1": SUPPORTED,
    "ablation-0-words": SUPPORTED,
    "ablation-1-2-voice": SUPPORTED,
    "reading-0": SUPPORTED,
    "reading-1-2": SUPPORTED,
    "reading-3-pitch": CONTRADICTED,  # pitch lies in layers 1-2
    "persists": CONTRADICTED,  # the voice stays longest, not the content
    "persists-beyond-use": CONTRADICTED,
    "faster": SUPPORTED,
    "uses-less": CONTRADICTED,  # all 30 content codes are used
    "uses-most": SUPPORTED,
    "lens-early": NOT_DECIDED,
    "lens-peak": NOT_DECIDED,
}


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """One default run of the command, with fewer studies of power: JSON on stdout and the report folder."""
    folder = tmp_path_factory.mktemp("notes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "design_power", partial(design_power, n_studies=8))
        done = CliRunner().invoke(
            reproduce, ["qwen3-tts-notes", "--json", "--quiet", "--out", str(folder)], catch_exceptions=False
        )
    assert done.exit_code == 0
    return json.loads(done.stdout), folder


def test_the_embedded_pair_gives_the_verdicts_of_its_plant(notes) -> None:
    verdicts = {row["claim"]: row["verdict"] for row in notes[0]["rows"]}
    assert {key: verdicts[key] for key in PLANTED} == PLANTED


def test_every_claim_has_a_row_with_rule_and_reason(notes) -> None:
    rows = notes[0]["rows"]
    assert [row["claim"] for row in rows] == [claim.key for claim in CLAIMS]
    for row in rows:
        assert row["says"] and row["estimand"] and row["rule"] and row["why"], row["claim"]
        if row["value"] is not None:
            assert row["ci_low"] <= row["value"] <= row["ci_high"]
            assert row["n_items"] == 50 and row["n_clusters"] == 10
            assert row["p_value"] is not None or row["p_note"]


def test_claims_about_the_talker_stay_undecided_without_it(notes) -> None:
    rows = [row for row in notes[0]["rows"] if row["part"] == "lens"]
    assert {row["why"] for row in rows} == {"needs the talker: give --model"}


def test_the_power_of_ten_by_five_is_printed(notes) -> None:
    (note,) = (note for note in notes[0]["notes"] if note.startswith("Power"))
    assert "10 speakers, 50 clips" in note
    assert all(f"at {accuracy}" in note for accuracy in (0.2, 0.3, 0.5))


def test_the_report_holds_tables_and_figures_of_all_parts(notes) -> None:
    folder = notes[1]
    assert (folder / "report.html").is_file()
    figures = {path.stem.partition("-")[0] for path in (folder / "figures").glob("*.png")}
    assert figures == {"power", "speaker", "timescales", "usage", "ablation", "swap"}
    assert {f"{part}-rows.csv" for part in figures - {"power"}} <= {path.name for path in folder.glob("*.csv")}


@pytest.fixture
def few_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate few studies of power where the power is not what is tested."""
    monkeypatch.setattr(claims, "design_power", partial(design_power, n_studies=2))


def test_where_every_speaker_has_one_session_the_speaker_claims_say_so(tmp_path: Path, few_studies: None) -> None:
    whole = embedded_corpus()
    first = {speaker: min(c.session for c in whole.clips if c.speaker == speaker) for speaker in whole.speakers[:4]}
    kept = tuple(c for c in whole.clips if first.get(c.speaker) == c.session)
    result = reproduce_notes(
        replace(whole, clips=kept), "embedded", speakers=None, clips=3, n_permutations=19, n_bootstrap=10,
        cache=tmp_path,
    )  # fmt: skip
    rows = {row["claim"]: row for row in result.rows}
    assert len(rows) == len(CLAIMS)
    for key in ("speaker-0", "speaker-1", "speaker-later"):
        assert rows[key]["verdict"] == NOT_DECIDED
        assert "speaker and session cannot be told apart" in rows[key]["why"]
    assert rows["persists"]["verdict"] == CONTRADICTED
    assert any(note.startswith("Power of the speaker probe: none, because") for note in result.notes)


def test_four_speakers_are_not_compared_with_ten(tmp_path: Path, few_studies: None) -> None:
    result = reproduce_notes(
        "embedded", "embedded-flat", speakers=4, clips=2, n_permutations=19, n_bootstrap=10, cache=tmp_path
    )
    rows = {row["claim"]: row for row in result.rows}
    assert "among 4 speakers is not comparable" in rows["speaker-1-size"]["why"]
    assert SUPPORTED not in {rows[key]["verdict"] for key in ("speaker-1", "ablation-1-2-voice", "reading-1-2")}


@pytest.mark.transformers
def test_real_speech_through_a_tokenizer_folder(librispeech: Path, tmp_path: Path, few_studies: None) -> None:
    """The real classes with random weights: every claim has a row and an honest verdict, and nothing warns."""
    from tiny_qwen import build_tiny_qwen

    folder = build_tiny_qwen(tmp_path / "codec")
    result = reproduce_notes(
        librispeech / "dev-clean", folder, speakers=4, clips=2, n_permutations=19, n_bootstrap=10, cache=tmp_path
    )
    assert len(result.rows) == len(CLAIMS)
    assert all(row["verdict"] in (SUPPORTED, CONTRADICTED, NOT_DECIDED) and row["why"] for row in result.rows)
    assert {row["n_clusters"] for row in result.rows if row["part"] == "timescales"} == {4}
