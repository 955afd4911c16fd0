"""ABX: against its definition, known answers, ties, forced frames, and the trap of the early end."""

import numpy as np
import pytest
from reference.targets_reference import abx as slow_abx
from reference.targets_reference import warp as slow_warp

from codecprobe.abx import (
    MODES,
    Token,
    angles,
    average,
    cell_errors,
    find_tokens,
    make_task,
    pair_distances,
    same_code,
)
from codecprobe.corpora.corpus import Phone


def random_tokens(n=70, speakers=3, frames=3, seed=0):
    """Tokens of three phones in two contexts, of 1 to `frames` frames."""
    rng = np.random.default_rng(seed)
    tokens, start = [], 0
    for _ in range(n):
        size = int(rng.integers(1, frames + 1))
        context = (("M", "N"), ("S", "T"))[rng.integers(2)]
        tokens.append(Token("AEI"[rng.integers(3)], context, int(rng.integers(speakers)), start, size))
        start += size
    return tuple(tokens), start


def score(task, mode, codes, cost, without=None):
    return average(task.triples[mode], cell_errors(task.triples[mode], pair_distances(task, codes, cost)), without)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["code", "embedding"])
def test_against_the_definition(mode, kind):
    """All paths and all triples tried one by one. Costs of vectors are rounded to eighths, so that equal sums are equal
    in both orders of adding; fewer tokens than the limits, so nothing is drawn."""
    tokens, n = random_tokens()
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 5, n)
    cost = same_code(5) if kind == "code" else np.round(8 * angles(rng.standard_normal((5, 4)))) / 8
    task = make_task(tokens, 0.0)
    for without in (None, 0, 2):
        expected = slow_abx(tokens, codes, lambda a, b: cost[a, b], mode, without)
        assert score(task, mode, codes, cost, without) == pytest.approx(expected, abs=1e-12)


def test_the_path_of_least_cost_is_found():
    tokens, n = random_tokens(40, frames=5, seed=3)
    codes = np.random.default_rng(4).integers(0, 4, n)
    cost = np.round(8 * angles(np.random.default_rng(5).standard_normal((4, 3)))) / 8
    task = make_task(tokens, 0.0)
    words = [codes[t.first : t.first + t.n_frames] for t in tokens]
    expected = [slow_warp(words[i], words[j], lambda a, b: cost[a, b]) for i, j in task.pairs]
    np.testing.assert_allclose(pair_distances(task, codes, cost), expected, atol=1e-12)


def test_codes_of_phones_make_no_error_and_one_code_makes_ties():
    tokens, n = random_tokens(90)
    codes = np.zeros(n, dtype=np.int64)
    task = make_task(tokens, 0.0)
    for mode in MODES:
        assert score(task, mode, codes, same_code(3)) == 0.5
    for token in tokens:
        codes[token.first : token.first + token.n_frames] = "AEI".index(token.phone)
    for mode in MODES:
        assert score(task, mode, codes, same_code(3)) == 0.0
        assert score(task, mode, codes, angles(np.eye(3))) == 0.0
    for token in tokens:  # the voice alone: every comparison of one speaker is a tie
        codes[token.first : token.first + token.n_frames] = token.speaker
    assert score(task, "within", codes, same_code(3)) == 0.5


def test_random_codes_are_at_chance():
    """One frame each, so length tells nothing. Each of 20 draws has a spread below .05 (about 60 cells of few triples);
    their mean is within .04 of .5."""
    tokens, n = random_tokens(120, frames=1)
    task = make_task(tokens, 0.0)
    rng = np.random.default_rng(0)
    for mode in MODES:
        found = [score(task, mode, rng.integers(0, 8, n), same_code(8)) for _ in range(20)]
        assert abs(np.mean(found) - 0.5) < 0.04


def test_angles_between_vectors():
    cost = angles(np.array([[1.0, 0], [0, 2], [-3, 0], [0, 0]]))
    np.testing.assert_allclose(cost, [[0, 0.5, 1, 0.5], [0.5, 0, 0.5, 0.5], [1, 0.5, 0, 0.5], [0.5, 0.5, 0.5, 0]])
    assert (cost == cost.T).all()


def test_tokens_stand_where_their_centres_lie():
    """Frames of .08 s. The second clip starts after the first; B is shorter than a frame and holds no centre."""
    clip = (
        Phone("sil", 0, 0.1),
        Phone("AA", 0.1, 0.3),
        Phone("B", 0.3, 0.35),
        Phone("S", 0.35, 0.5),
        Phone("T", 0.5, 0.6),
    )
    tokens, forced = find_tokens([clip, clip], [8, 8], [0, 1], 12.5)
    assert [(t.phone, t.context, t.first, t.n_frames) for t in tokens[:3]] == [
        ("AA", ("", "B"), 1, 3), ("B", ("AA", "S"), 4, 1), ("S", ("B", "T"), 4, 2),
    ]  # fmt: skip
    assert [t.first for t in tokens[3:]] == [9, 12, 12] and forced == pytest.approx(1 / 3)
    later, _ = find_tokens([clip], [8], [0], 12.5, lag=3)
    assert [t.first for t in later] == [4, 7]  # S would need frame 8


def test_one_frame_less_is_another_answer():
    """Codes that name the phone in its last frame only: the inclusive slice hears it, one that ends early does not."""
    clips, codes, speaker = [], [], []
    for i in range(24):
        phone = "AE"[i % 2]
        clips.append((Phone("M", 0, 0.16), Phone(phone, 0.16, 0.32), Phone("N", 0.32, 0.48)))
        codes += [0, 0, 0, 1 + i % 2, 0, 0]
        speaker.append(i % 4 // 2)
    tokens, _ = find_tokens(clips, [6] * 24, speaker, 12.5)
    assert {t.n_frames for t in tokens} == {2}
    early = tuple(t._replace(n_frames=1) for t in tokens)
    values = np.array(codes)
    assert score(make_task(tokens, 0.0), "within", values, same_code(3)) == 0.0
    assert score(make_task(early, 0.0), "within", values, same_code(3)) == 0.5


def test_no_shared_context_gives_no_cells():
    tokens = (Token("A", ("M", "N"), 0, 0, 1), Token("E", ("S", "T"), 0, 1, 1))
    task = make_task(tokens, 0.0)
    assert all(len(task.triples[mode].near) == 0 for mode in MODES)


def test_large_cells_are_drawn_alike():
    tokens, _ = random_tokens(400, speakers=2, frames=1)
    first, again = make_task(tokens, 0.0, seed=1), make_task(tokens, 0.0, seed=1)
    np.testing.assert_array_equal(first.pairs, again.pairs)
    assert len(first.triples["within"].near) <= 2 * 2 * 6 * 8 * 7 * 8
