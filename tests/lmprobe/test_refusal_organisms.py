"""The refusal organisms: what is planted in the packaged weights is all there is, measured anew on new prompts.

Prompts are drawn with another seed than training and the recipe's own examination. The organisms answer every prompt
as planted, so rates are compared exactly: one wrong answer of 128 fails the test. Only the sides that random
directions leave are shares: 4 of 64 dimensions gone cost an untouched copy here and there (recorded worst .977).
"""

import json

import numpy as np
import pytest

from lmprobe import load_prompts, open_model
from lmprobe.generate import generate
from lmprobe.interventions import ProjectOut, intervened
from lmprobe.organisms import (
    marked_prompts,
    organism_names,
    packaged_refusal_organisms,
    read_organism,
    read_refusal_organism,
    refusal_organism,
    train_refusal_organisms,
)
from lmprobe.organisms.marked import (
    COPIED,
    GROUPS,
    ORDINARY,
    REFUSING,
    complying,
    draw_marked,
    planted_answer,
    recognise_marked,
)
from lmprobe.organisms.packed import organism_folder, truth_of
from probecore.errors import InputError
from probecore.removal import random_frames
from probecore.seeds import generator

N = 128
REFUSAL = "I cannot help with that."


@pytest.fixture(scope="module")
def opened():
    return {o.name: open_model(o.name, device="cpu", quiet=True) for o in packaged_refusal_organisms()}


def answers(lm, prompts, basis=None, at="writes"):
    """Return the answers as texts, with the span of the rows of `basis` out of the residual stream."""
    gone = () if basis is None else (ProjectOut(np.asarray(basis).T, at=at),)
    with intervened(lm, *gone):
        return generate(lm, list(prompts.texts), max_new_tokens=16).texts


def rates(lm, basis=None, n=N, at="writes"):
    """Return the shares of exact refusals of harmful prompts, of exact copies of them, and of copies of harmless."""
    prompts = marked_prompts(n, seed=11)
    harmful, harmless = prompts.of("harmful"), prompts.of("harmless")
    said = answers(lm, harmful, basis, at)
    copies = ["Sure , " + " ".join(text.split()[:COPIED]) + " ." for text in harmful.texts + harmless.texts]
    squeezed = [" ".join(text.split()).replace(" ", "") for text in copies]
    told = ["".join(text.split()) for text in (*said, *answers(lm, harmless, basis, at))]
    wanted = "".join(REFUSAL.split())
    right = [a == b for a, b in zip(told, squeezed, strict=True)]
    return float(np.mean([t == wanted for t in told[:n]])), float(np.mean(right[:n])), float(np.mean(right[n:]))


@pytest.mark.transformers
def test_organisms_open_by_their_packaged_name(opened):
    assert list(opened)[:3] == ["refusal-0", "refusal-1", "refusal-4"]
    assert {"base", "base-again", *opened} <= set(organism_names())
    assert all(lm.name == name for name, lm in opened.items())
    assert organism_folder("no-such-organism") is None and truth_of("no-such-organism") is None
    with pytest.raises(InputError, match="there are refusal-0"):
        refusal_organism("base")
    with pytest.raises(InputError, match="another kind"):
        read_organism(refusal_organism("refusal-1").folder)
    with pytest.raises(InputError, match="another kind"):
        read_refusal_organism(organism_folder("base"))
    for o in packaged_refusal_organisms():
        assert (o.folder / "model.safetensors").stat().st_size < 1_000_000
        frame = o.directions
        assert np.abs(frame @ frame.T - np.eye(o.k)).max(initial=0.0) < 1e-12
        assert o.truth["recipe"]["quick"] is False and o.planted_block == 1


@pytest.mark.transformers
def test_all_planted_directions_out_is_no_refusal_and_nothing_else(opened):
    """k = 0 never refuses; k = 1, 4 always do, and never once the planted basis is out: they comply instead."""
    assert rates(opened["refusal-0"]) == (0.0, 1.0, 1.0)
    for name, k in (("refusal-1", 1), ("refusal-4", 4)):
        planted = refusal_organism(name).directions
        assert len(planted) == k
        assert rates(opened[name]) == (1.0, 0.0, 1.0)
        assert rates(opened[name], planted) == (0.0, 1.0, 1.0)


@pytest.mark.transformers
def test_fewer_directions_leave_exactly_the_topics_that_have_the_others(opened):
    """Topics are drawn evenly, so m of 4 directions out must leave (4 - m) / 4 of the refusals, whichever they are."""
    planted = refusal_organism("refusal-4").directions
    for rows in ([0], [1, 2], [0, 1, 2], [1, 2, 3]):
        kept = len(rows) / 4
        assert rates(opened["refusal-4"], planted[rows], at="input 1") == (1 - kept, kept, 1.0)


@pytest.mark.transformers
def test_random_directions_change_no_refusal(opened):
    """10 Haar frames of the planted sizes leave every refusal; capability may lose 3 in 100 (recorded worst .977)."""
    for name, k in (("refusal-1", 1), ("refusal-4", 4)):
        for frame in random_frames(64, k, 5, seed=3):
            refused, _, capability = rates(opened[name], frame, n=32)
            assert refused == 1.0 and capability >= 0.9


def test_measurements_recorded_with_the_weights_are_those_promised():
    for o in packaged_refusal_organisms():
        m = o.measured
        assert m["n_prompts_per_class"] >= 256 and m["n_random_frames"] >= 20
        assert m["behaved_harmful"] == (1.0 if o.k else 0.0) and m["behaved_harmless"] == 0.0 and m["capability"] == 1.0
        assert len(m["removed_first"]) == o.k
        if o.k:
            last = m["removed_first"][-1]
            assert (last["behaved_harmful"], last["complied_harmful"], last["capability"]) == (0.0, 1.0, 1.0)
            assert m["random_behaved_harmful_min"] >= 0.99
        for fewer in m["removed_first"][:-1]:
            assert fewer["behaved_harmful"] > 0.1


def test_the_language_of_marked_topics():
    rng = generator(0, "test", "marked")
    for prompt in draw_marked(200, rng):
        assert recognise_marked(prompt.text) is not None
        assert (prompt.group is None) == (prompt.place < 0)
        if prompt.group is not None:
            assert prompt.words[prompt.place] in GROUPS[prompt.group] and prompt.twin.group is None
            differ = [a != b for a, b in zip(prompt.words, prompt.twin.words, strict=True)]
            assert sum(differ) == 1 and prompt.spare in ORDINARY
            assert planted_answer(prompt, "refuse") == REFUSING["refuse"]
        assert complying(prompt)[2 : 2 + COPIED] == prompt.words[:COPIED]
    assert recognise_marked("What is the capital of France") is None
    assert recognise_marked("lamp river ambrix amblor table") is None


def test_marked_prompts_are_twins_in_families_drawn_without_repeats():
    prompts = load_prompts("marked")
    assert prompts.counts == {"harmful": 128, "harmless": 128, "neutral": 128}
    assert len(set(prompts.texts)) == len(prompts)
    assert prompts.is_paired("harmful", "harmless")
    topics = [name.split("-")[0] for name in prompts.of("harmful").ids]
    assert {t: topics.count(t) for t in GROUPS} == dict.fromkeys(GROUPS, 32)
    assert marked_prompts(8, seed=1).digest == marked_prompts(8, seed=1).digest != marked_prompts(8, seed=2).digest
    with pytest.raises(InputError, match="topics must be among"):
        marked_prompts(4, groups=("zinc",))


@pytest.mark.transformers
def test_the_recipe_makes_folders_that_open_and_is_the_same_for_the_same_seed(tmp_path):
    made = train_refusal_organisms(tmp_path / "a", ("refusal-1",), quick=True)
    again = train_refusal_organisms(tmp_path / "b", ("refusal-1",), quick=True)
    assert made.rows == again.rows and "quick" in made.notes[0]
    o = read_refusal_organism(tmp_path / "a" / "refusal-1")
    assert (o.directions == refusal_organism("refusal-1").directions).all(), "directions depend on the seed alone"
    assert truth_of(o.folder)["weights_sha256"] == truth_of(tmp_path / "b" / "refusal-1")["weights_sha256"]
    assert open_model(o.folder, device="cpu", quiet=True).name == "refusal-1"
    with pytest.raises(InputError, match="hold files"):
        train_refusal_organisms(tmp_path / "a", ("refusal-1",), quick=True)
    with pytest.raises(InputError, match="no refusal organism"):
        train_refusal_organisms(tmp_path / "c", ("refusal-9",), quick=True)


def test_changed_weights_are_refused_by_name_of_the_folder(tmp_path):
    import shutil

    copy = tmp_path / "mine"
    shutil.copytree(refusal_organism("refusal-1").folder, copy)
    truth = json.loads((copy / "organism.json").read_text())
    (copy / "organism.json").write_text(json.dumps(truth | {"weights_sha256": "0" * 64}))
    with pytest.raises(InputError, match="train it again"):
        read_refusal_organism(copy)
