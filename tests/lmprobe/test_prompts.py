"""Prompts: the packaged set keeps its promises; own sets are read from every format, or refused in one line."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lmprobe.prompt_draw import draw_prompts
from lmprobe.prompts import load_prompts, pair_index
from probecore.errors import InputError


def words_of(text):
    return [*text[:-1].split(), text[-1]]


def test_packaged_prompts_have_the_promised_numbers():
    prompts = load_prompts()
    assert prompts.counts == {"safe": 20, "risk": 20, "neutral": 10}
    assert len(set(prompts.texts)) == len(set(prompts.ids)) == 50
    assert len(set(prompts.families)) == 20


def test_safe_and_risk_prompts_of_a_family_hold_the_same_words_in_another_order():
    prompts = load_prompts()
    for safe, risk in pair_index(prompts, "safe", "risk").tolist():
        one, other = words_of(prompts.texts[safe]), words_of(prompts.texts[risk])
        assert Counter(one) == Counter(other) and one != other
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 2  # the two roles, nothing else


def test_neutral_prompts_share_template_and_place_of_their_family():
    prompts = load_prompts()
    risk = {f: t for f, t, c in zip(prompts.families, prompts.texts, prompts.categories, strict=True) if c == "risk"}
    for text, family in zip(prompts.of("neutral").texts, prompts.of("neutral").families, strict=True):
        ours, theirs = words_of(text), words_of(risk[family])
        assert len(ours) == len(theirs)
        assert sum(a != b for a, b in zip(ours, theirs, strict=True)) == 3  # two roles and the verb


def test_no_role_occurs_in_two_families_of_the_paired_prompts():
    """Else a probe tested on a new family could know its roles."""
    from lmprobe.organisms import grammar

    roles = set(grammar.GRADES) | set(grammar.PEOPLE)
    prompts = load_prompts().of("safe", "risk")
    seen = [word for text in prompts.of("risk").texts for word in words_of(text) if word in roles]
    assert len(seen) == len(set(seen)) == 40


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_own_prompts_from_every_format(tmp_path, suffix):
    records = [
        {"prompt": 'Say "hi", please', "label": "safe", "pair_id": "a", "extra": "x"},
        {"prompt": "Ünïcode", "label": "risk", "pair_id": "a", "extra": "y"},
    ]
    path = tmp_path / f"mine{suffix}"
    if suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(records[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    elif suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    prompts = load_prompts(path)
    assert prompts.texts == tuple(r["prompt"] for r in records)
    assert prompts.categories == ("safe", "risk") and prompts.families == ("a", "a") and prompts.has_families
    assert prompts.is_paired("safe", "risk") and prompts.source == f"mine{suffix}"


def test_a_quoted_line_break_stays_inside_its_field(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('text,category\n"two\nlines",safe\nother,risk\n')
    assert load_prompts(path).texts == ("two\nlines", "other")


def test_prompts_from_a_saved_data_set_with_class_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["safe", "risk"])}
    )
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features).save_to_disk(tmp_path / "mine")
    prompts = load_prompts(tmp_path / "mine")
    assert prompts.categories == ("safe", "risk") and not prompts.has_families
    assert prompts.families == prompts.ids == ("prompt-1", "prompt-2")


def test_columns_can_be_named(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("q,kind,text\na,safe,x\nb,risk,y\n")
    prompts = load_prompts(path, columns={"text": "q", "category": "kind"})
    assert prompts.texts == ("a", "b")
    with pytest.raises(InputError, match="no column 'nope'"):
        load_prompts(path, columns={"text": "nope"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,kind\na,safe\nb,risk\n", "needs a column for the category"),
        ("words,category\na,safe\nb,risk\n", "needs a column for the text"),
        ("text,category\na,safe\nb,safe\n", "at least 2 categories"),
        ("text,category\na,safe\n ,risk\n", "records 2 have none"),
        ("text,category\na,safe\nb\n", "records 2 have none"),
        ("id,text,category\n1,a,safe\n1,b,risk\n", "must be unique"),
        ("text,category\n", "are empty"),
        ("", "are empty"),
    ],
)
def test_unusable_prompts_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_prompts(path)
    assert "\n" not in str(error.value) and "mine.csv" in str(error.value)


def test_unreadable_files_and_unknown_names_are_refused(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": "a"')
    (tmp_path / "binary.csv").write_bytes(b"text,category\n\xff\xfe,safe\n")
    (tmp_path / "scalar.json").write_text("3")
    (tmp_path / "notes.md").write_text("x")
    for name in ("broken.jsonl", "binary.csv", "scalar.json", "notes.md"):
        with pytest.raises(InputError, match=name):
            load_prompts(tmp_path / name)
    with pytest.raises(InputError, match="no prompt file"):
        load_prompts(tmp_path / "missing.csv")


def test_pairs_are_found_or_refused():
    prompts = load_prompts()
    pairs = pair_index(prompts, "safe", "risk")
    assert pairs.shape == (20, 2)
    assert all(prompts.families[i] == prompts.families[j] for i, j in pairs)
    assert np.unique(pairs).size == 40
    with pytest.raises(InputError, match="exactly one"):
        pair_index(prompts, "safe", "neutral")


def test_the_digest_sees_every_field_and_not_the_source():
    prompts = load_prompts()
    assert prompts.digest == prompts.take(range(50)).digest
    assert prompts.digest != prompts.take([1, 0, *range(2, 50)]).digest


def test_a_draw_has_as_many_prompts_of_each_category_and_keeps_pairs():
    prompts = load_prompts()
    few = draw_prompts(prompts, 6, np.random.default_rng(0))
    assert few.counts == {"safe": 6, "risk": 6, "neutral": 6}
    assert few.is_paired("risk", "safe")
    assert few.ids == tuple(item for item in prompts.ids if item in few.ids)
    assert draw_prompts(prompts, 6, np.random.default_rng(0)) == few
    assert draw_prompts(prompts, 6, np.random.default_rng(1)) != few
    assert draw_prompts(prompts, 99, np.random.default_rng(0)) == prompts
    with pytest.raises(InputError, match="limit"):
        draw_prompts(prompts, 0, np.random.default_rng(0))


def test_a_draw_of_prompts_without_pairs_is_one_of_each_category():
    prompts = load_prompts()
    alone = replace(prompts, families=prompts.ids)
    few = draw_prompts(alone, 6, np.random.default_rng(0))
    assert few.counts == {"safe": 6, "risk": 6, "neutral": 6}
    assert draw_prompts(alone.of("safe"), 6, np.random.default_rng(0)).counts == {"safe": 6}
