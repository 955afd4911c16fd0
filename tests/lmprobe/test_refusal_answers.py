"""Rates of written answers, what people's labels say of detectors, and how prompts are split for a study."""

import numpy as np
import pytest
from conftest import REAL_DATA
from zoo import PROMPTS, opened

from lmprobe import ProjectOut, generate, intervened
from lmprobe.calibration import Calibration, published_calibrations
from lmprobe.detectors import detector
from lmprobe.labelled_answers import POOLED, POOLED_OTHERS, calibrations_of, detector_rows, read_labelled
from lmprobe.partition import partition
from lmprobe.prompts import Prompts, load_prompts
from lmprobe.refusal_answers import (
    ADDED,
    RANDOM_REMOVED,
    REMOVED,
    UNTOUCHED,
    Arm,
    borrowed_rows,
    judged,
    rate_rows,
    run_arm,
)
from lmprobe.refusal_setting import Material, form_notes, material
from probecore import DesignError, InputError
from probecore.stats.effects import mcnemar_exact, paired_difference_interval, wilson_interval

NO, YES = "I cannot do that.", "Sure, here it is."


def arm(condition: str, *refused: list[int]) -> Arm:
    return Arm(condition, "harmful", {8: [[NO if r else YES for r in each] for each in refused]})


def rows_of(arms: list[Arm], clusters: np.ndarray, calibration: Calibration | None = None):
    n = len(clusters)
    found = judged(arms, {"harmful": ["p"] * n}, [detector("markers")])
    rows = rate_rows(found, {"harmful": clusters}, {"markers": calibration}, n_bootstrap=500)
    return {row["condition"]: row for row in rows}


def test_single_prompts_get_wilson_and_mcnemar() -> None:
    """Against the closed forms: 18 of 20 before, 4 of 20 after, 1 of them new."""
    before, after = [1] * 18 + [0] * 2, [1] * 3 + [0] * 16 + [1]
    rows = rows_of([arm(UNTOUCHED, before), arm(REMOVED, after), arm(RANDOM_REMOVED, before, after)], np.arange(20))
    removed = rows[REMOVED]
    assert (removed["value"], removed["untouched"]) == (0.2, 0.9)
    assert (removed["ci_low"], removed["ci_high"]) == wilson_interval(4, 20)
    assert removed["p_value"] == mcnemar_exact(15, 1)
    assert removed["change"] == pytest.approx(-0.7, abs=1e-12)
    assert (removed["change_low"], removed["change_high"]) == paired_difference_interval(3, 1, 15, 1)
    gone = rows_of([arm(UNTOUCHED, [1] * 20), arm(REMOVED, [0] * 20)], np.arange(20))[REMOVED]
    assert gone["change"] == gone["change_low"] == -1.0 and -0.9 < gone["change_high"] < -0.7, "20 of 20 are not all"
    pairs = rows_of([arm(UNTOUCHED, [1] * 20), arm(REMOVED, [0] * 20)], np.arange(20) // 2)[REMOVED]
    assert pairs["change_high"] == pytest.approx(-(0.025 ** (1 / 10)), abs=1e-9)
    control = rows[RANDOM_REMOVED]
    assert removed["control"] == control["value"] == pytest.approx(0.55, abs=1e-12)
    assert (control["null_low"], control["null_high"]) == (0.2, 0.9) and control["p_value"] is None
    assert rows[UNTOUCHED]["p_value"] is None and rows[UNTOUCHED]["p_note"]
    assert removed["p_adjusted"] == removed["p_value"], "one test in the family"


def test_near_duplicates_count_once() -> None:
    """Ten copies of each of 6 prompts: an interval far wider than Wilson's of 60, and the p of 6 flips, 4 of 64."""
    clusters = np.repeat(np.arange(6), 10)
    after = [int(c == 0) for c in clusters]
    rows = rows_of([arm(UNTOUCHED, [1] * 60), arm(REMOVED, after)], clusters)
    low, high = wilson_interval(10, 60)
    assert rows[REMOVED]["ci_high"] - rows[REMOVED]["ci_low"] > 2 * (high - low)
    assert rows[REMOVED]["p_value"] == pytest.approx(2 * 2 / 64, abs=1e-12), (
        "the sign of cluster 0, which did not change, is free"
    )
    assert rows[REMOVED]["n_clusters"] == 6


def test_empty_answers_are_no_refusals_and_are_counted() -> None:
    found = judged(
        [Arm(UNTOUCHED, "harmful", {8: [["", NO, " ", YES]]})], {"harmful": ["p"] * 4}, [detector("markers")]
    )
    (row,) = rate_rows(found, {"harmful": np.arange(4)}, {})
    assert (row["value"], row["empty"]) == (0.25, 0.5)


def test_corrected_rates_come_from_labels_of_this_model_only() -> None:
    """Sensitivity .8, specificity .9: an observed .5 is (.5 - .1) / .7; other models stand in rows of their own."""
    own = Calibration(80, 20, 10, 90)
    half = [1, 0] * 20
    row = rows_of([arm(UNTOUCHED, half)], np.arange(40), own)[UNTOUCHED]
    assert row["corrected"] == pytest.approx(0.4 / 0.7, abs=1e-12)
    assert row["corrected_low"] < 0.4 / 0.7 < row["corrected_high"] and row["corrected_note"] == ""
    assert "corrected" not in rows_of([arm(UNTOUCHED, half)], np.arange(40))[UNTOUCHED]
    weak = rows_of([arm(UNTOUCHED, half)], np.arange(40), Calibration(3, 46, 3, 398))[UNTOUCHED]
    assert weak["corrected"] is None and "cannot tell" in weak["corrected_note"]
    borrowed = borrowed_rows([row], published_calibrations()["markers"])
    assert len(borrowed) == 5 and all(r["detail"] for r in borrowed)


@pytest.mark.transformers
def test_what_a_length_shows_is_the_beginning_of_the_longest_answer() -> None:
    """Greedy answers of 2 tokens are the first 2 tokens of those of 6, with and without a removal."""
    lm = opened("llama")
    vector = np.random.default_rng(0).normal(0, 1, 64)
    rows = lm.format_all(PROMPTS)
    for edit in ((), (ProjectOut(vector),)):
        made = run_arm(lm, REMOVED, "harmful", rows, (2, 6), [edit])
        for n in (2, 6):
            with intervened(lm, *edit):
                assert made.texts[n] == [list(generate(lm, PROMPTS, max_new_tokens=n, layers=()).texts)]
    assert run_arm(lm, ADDED, "harmful", rows, (2,), [(), ()]).n_directions == 2


def test_xstest_is_read_as_published_and_gives_the_packaged_counts() -> None:
    folder = REAL_DATA / "refusal" / "xstest" / "model_completions"
    if not folder.is_dir():
        pytest.skip(f"no labelled completions at {folder}")
    files = [read_labelled(path) for path in sorted(folder.glob("xstest_v2_completions_*.csv"))]
    for name in ("markers", "openings"):
        found, own = calibrations_of(detector(name), files)
        published, none = calibrations_of(detector(name), [])
        assert none is None and own == published[POOLED]
        for each in files:
            assert found[each.name] == published[each.name.rsplit("_", 1)[1]]
        rows = detector_rows(detector(name), found, [each.name for each in files])
        assert [row["source"] for row in rows] == [each.name for each in files] and rows[0]["own_answers"]
        of_others, none = calibrations_of(detector(name), [], files)
        assert none is None and of_others[POOLED_OTHERS] == own
        mixed, first = calibrations_of(detector(name), files[:1], files[1:])
        assert first == found[files[0].name] and mixed == found, "others correct nothing"


def test_files_of_labels_that_cannot_be_used(tmp_path) -> None:
    (tmp_path / "word.csv").write_text("answer,label\nno,maybe\n")
    (tmp_path / "column.csv").write_text("reply,label\nno,refusal\n")
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "good.jsonl").write_text(
        '{"response": "no", "label": "Refusal"}\n{"response": "a", "label": "partial"}\n'
    )
    for name, words in {
        "word.csv": "labels must be", "column.csv": "needs a column answer or", "broken.jsonl": "not a readable jsonl",
        "x.txt": "must be a",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=words):
            read_labelled(tmp_path / name)
    assert read_labelled(tmp_path / "good.jsonl").is_refusal == (True, None)
    assert calibrations_of(detector(str(_phrases(tmp_path))), []) == ({}, None), "nobody labelled for these phrases"


def _phrases(folder):
    path = folder / "phrases.txt"
    path.write_text("No way\n")
    return path


def test_splits_of_a_study() -> None:
    marked = load_prompts("marked")
    found = material(marked, seed=1)
    assert found.paired and len(found.others) == 128 and set(found.others.categories) == {"neutral"}
    units = [set(found.unit[found.split.index(name)].tolist()) for name in ("extract", "select", "test")]
    assert not units[0] & units[1] and not units[1] & units[2] and not units[0] & units[2]
    few = material(marked, limit=32)
    assert len(few.prompts) == 64 and few.paired
    assert material(marked, limit=32, seed=3).prompts.ids != few.prompts.ids
    with pytest.raises(DesignError, match="would have"):
        material(marked, limit=5)


def test_form_is_compared() -> None:
    texts = tuple(f"What is the word {i} of the long text?" for i in range(20)) + tuple(
        f"Say {i} now" for i in range(20)
    )
    ids = tuple(f"p{i}" for i in range(40))
    prompts = Prompts("forms", ids, texts, ("safe",) * 20 + ("risk",) * 20, ids, has_families=False)
    split = partition([f"{i} {'x' * i} unique{i}" for i in range(40)], prompts.categories)
    given = Material(prompts, prompts.take([]), "risk", "safe", split, split.cluster, False)
    (note,) = form_notes(given, [len(t.split()) for t in texts])
    assert "3.0 against 9.0 tokens" in note and "0% against 100% end in '?'" in note
    assert "tokens" not in form_notes(given, [5] * 40)[0]
