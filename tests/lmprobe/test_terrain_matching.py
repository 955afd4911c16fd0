"""Matching in length against brute force; public prompt sets by their layout, synthetic ones and the real XSTest."""

import itertools
import json

import numpy as np
import pytest
from conftest import REAL_DATA

from lmprobe.matching import match_lengths
from lmprobe.prompts import Prompts, load_prompts, main_categories, read_prompts
from probecore.errors import DesignError, InputError


def prompts_of(n_first: int, n_second: int, families=None) -> Prompts:
    n = n_first + n_second
    ids = tuple(map(str, range(n)))
    categories = ("risk",) * n_first + ("safe",) * n_second
    return Prompts("made", ids, ids, categories, ids if families is None else tuple(families))


def brute(first, second, most):
    """Most pairs within the limit, and their least total distance, over all assignments."""
    best = (0, 0.0)
    small, large = sorted((first, second), key=len)
    for chosen in itertools.permutations(range(len(large)), len(small)):
        gaps = [abs(a - large[j]) for a, j in zip(small, chosen, strict=True)]
        inside = [g for g in gaps if g <= most]
        best = max(best, (len(inside), -float(sum(inside))))
    return best[0], -best[1]


@pytest.mark.parametrize("seed", range(8))
def test_the_matching_is_that_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(5, 16, 5).tolist(), rng.integers(5, 16, 6).tolist()
    pairs, distance = brute(first, second, 2)
    if pairs < 3:
        with pytest.raises(DesignError, match="at least 3 pairs"):
            match_lengths(prompts_of(5, 6), "risk", "safe", first + second, 2)
        return
    found = match_lengths(prompts_of(5, 6), "risk", "safe", first + second, 2)
    lengths = np.array(first + second)[[int(i) for i in found.prompts.ids]]
    risk = np.array([c == "risk" for c in found.prompts.categories])
    assert found.n_pairs == pairs == risk.sum() == (~risk).sum()
    # of two equally long sorted lists the sorted pairing is the closest
    assert np.abs(np.sort(lengths[risk]) - np.sort(lengths[~risk])).sum() == distance


def test_a_family_is_matched_inside_itself_and_others_stay() -> None:
    families = ["a", "a", "b", "b", "a", "a", "b", "b", "c"]
    prompts = prompts_of(4, 4, [*families[:8]])
    more = Prompts(
        "made", (*prompts.ids, "n"), (*prompts.texts, "n"), (*prompts.categories, "neutral"), tuple(families)
    )
    found = match_lengths(more, "risk", "safe", [3, 9, 3, 9, 9, 30, 4, 8, 5], 1)
    assert found.inside_families and found.n_pairs == 3
    assert sorted(found.prompts.ids) == sorted(["1", "4", "2", "6", "3", "7", "n"])
    before, after = found.balance
    assert (before["n_risk"], after["n_risk"], after["n_safe"]) == (4, 3, 3)
    assert abs(after["standardised_difference"]) <= abs(before["standardised_difference"])


def test_every_tokenizer_must_agree() -> None:
    lengths = np.array([[5, 5], [6, 6], [7, 7], [5, 5], [6, 9], [7, 7], [6, 6]])
    found = match_lengths(prompts_of(3, 4), "risk", "safe", lengths, 0, names=("x", "y"))
    assert sorted(found.prompts.ids) == ["0", "1", "2", "3", "5", "6"]
    assert {row["model"] for row in found.balance} == {"x", "y"}


# Public prompt sets


def written(tmp_path, name, records):
    path = tmp_path / name
    if name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, records)) + "\n")
    else:
        keys = list(records[0])
        lines = [",".join(keys)] + [",".join(str(r[k]) for k in keys) for r in records]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_layouts_of_public_sets_become_categories_and_families(tmp_path) -> None:
    xstest = written(tmp_path, "x.csv", [
        {"id": i, "prompt": f"text {i}", "type": kind, "label": label, "focus": "w", "note": ""}
        for i, (kind, label) in enumerate(
            [*[("homonyms", "safe")] * 2, *[("contrast_homonyms", "unsafe")] * 2, ("privacy_public", "safe"),
             ("privacy_fictional", "safe"), ("contrast_privacy", "unsafe")])
    ])  # fmt: skip
    found = load_prompts(xstest)
    assert found.families == ("homonyms",) * 4 + ("privacy",) * 3 and main_categories(found) == ("unsafe", "safe")
    paired = load_prompts(xstest, columns={"family": "pair"})
    assert paired.families == ("homonyms 1", "homonyms 2", "homonyms 1", "homonyms 2", *["privacy 1"] * 3)
    behaviors = written(tmp_path, "b.csv", [
        {"Behavior": "do b1", "FunctionalCategory": "standard", "SemanticCategory": "s", "BehaviorID": "b1"},
        {"Behavior": "do b2", "FunctionalCategory": "contextual", "SemanticCategory": "s", "BehaviorID": "b2"},
        {"Behavior": "do b3", "FunctionalCategory": "standard", "SemanticCategory": "t", "BehaviorID": "b3"},
    ])  # fmt: skip
    tasks = written(tmp_path, "t.jsonl", [
        {"id": "t1", "instruction": "Sort.", "instances": [{"input": "3 1 2", "output": ""}]},
        {"id": "t2", "instruction": "Greet.", "instances": [{"input": "", "output": ""}]},
    ])  # fmt: skip
    turns = written(tmp_path, "q.jsonl", [{"question_id": 81, "category": "writing", "turns": ["First.", "Second."]}])
    with pytest.raises(InputError, match=r"at least 2 categories; 'b.csv' has only 'risk'.*CATEGORY=SOURCE"):
        load_prompts(behaviors)
    both = read_prompts([f"risk={behaviors}", f"safe={tasks}", f"safe={turns}", f"unsafe={xstest}"])
    assert both.counts == {"risk": 2, "safe": 3, "unsafe": 3}
    assert "Sort.\n\n3 1 2" in both.texts and "First." in both.texts and "Second." not in " ".join(both.texts)
    assert len(set(both.ids)) == len(both) and both.families[0] == "b.csv:s"


@pytest.mark.parametrize(
    ("sources", "message"),
    [(["a.csv", "b.csv"], "write CATEGORY=SOURCE"), (["risk=default", "risk=default"], "all sources are 'risk'"),
     (["risk=none.csv", "safe=default"], "no prompt file 'none.csv'")],
)  # fmt: skip
def test_sources_that_make_no_contrast_are_refused(sources, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts(sources)


def test_one_source_and_none_are_what_load_prompts_reads() -> None:
    assert read_prompts([]).digest == read_prompts(["default"]).digest == load_prompts().digest


def test_the_real_xstest_has_its_known_facts() -> None:
    """450 prompts of 18 types: 250 safe, 200 unsafe; twins k of a type and of its contrast share the focus word."""
    path = REAL_DATA / "refusal" / "xstest" / "xstest_prompts.csv"
    if not path.is_file():
        pytest.skip("no XSTest: set CODECPROBE_DATA to a folder that holds refusal/xstest/")
    found = load_prompts(path)
    assert found.counts == {"safe": 250, "unsafe": 200} and len(set(found.families)) == 8
    pairs = load_prompts(path, columns={"family": "pair"})
    assert len(set(pairs.families)) == 200
    matched = match_lengths(found, "unsafe", "safe", [len(text.split()) for text in found.texts], 1)
    assert matched.n_pairs > 120 and abs(matched.balance[1]["standardised_difference"]) < 0.1
