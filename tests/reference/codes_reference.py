"""Slow versions of everything that is counted on codes: from the definitions, in loops, with exact fractions."""

from fractions import Fraction
from itertools import pairwise
from math import comb, log, log2

from scipy.special import psi


def entropy(counts, estimator):
    n = [c for c in counts if c > 0]
    total = sum(n)
    if estimator == "grassberger":

        def g(k):
            return psi(k) + 0.5 * (-1) ** k * (psi((k + 1) / 2) - psi(k / 2))

        return log2(total) - sum(k * g(k) for k in n) / (total * log(2))
    if estimator == "chao-shen":
        once = sum(k == 1 for k in n)
        once = total - 1 if once == total else once
        q = [(1 - once / total) * k / total for k in n]
        return -sum(p * log2(p) / (1 - (1 - p) ** total) for p in q)
    plug_in = -sum(k / total * log2(k / total) for k in n)
    return plug_in + ((len(n) - 1) / (2 * total * log(2)) if estimator == "miller-madow" else 0)


def rarefied(counts, n_frames):
    total = sum(counts)
    return float(sum(1 - Fraction(comb(total - n, n_frames), comb(total, n_frames)) for n in counts if n))


def information(a, b):
    """Plug-in mutual information by summing over observed pairs."""
    n = len(a)
    pairs = list(zip(a, b, strict=True))
    value = 0.0
    for x, y in set(pairs):
        p = pairs.count((x, y)) / n
        value += p * log2(p / ((list(a).count(x) / n) * (list(b).count(y) / n)))
    return value


def pairs_by_lag(codes, mask, lag):
    """(equal, all) pairs of one layer of one clip exactly `lag` apart."""
    found = [(i, i + lag) for i in range(len(codes) - lag) if mask[i] and mask[i + lag]]
    return sum(codes[i] == codes[j] for i, j in found), len(found)


def far_pairs(codes, mask, far):
    found = [(i, j) for i in range(len(codes)) for j in range(i + far + 1, len(codes)) if mask[i] and mask[j]]
    return sum(codes[i] == codes[j] for i, j in found), len(found)


def runs(codes, mask):
    """(ended, cut off, dropped) lists of run lengths of one layer of one clip."""
    stretches, current = [], []
    for code, counts in zip(codes, mask, strict=True):
        if counts:
            current.append(code)
        elif current:
            stretches.append(current)
            current = []
    stretches += [current] if current else []
    ended, cut_off, dropped = [], [], []
    for stretch in stretches:
        lengths = [1]
        for before, after in pairwise(stretch):
            if before == after:
                lengths[-1] += 1
            else:
                lengths.append(1)
        dropped.append(lengths[0])
        if len(lengths) > 1:
            cut_off.append(lengths[-1])
            ended += lengths[1:-1]
    return ended, cut_off, dropped


def collision_of_clips(a, b):
    """Share of equal codes among all pairs of one frame of each clip."""
    return sum(x == y for x in a for y in b) / (len(a) * len(b))


def rung_means(clips, speaker, session):
    """(S_session, S_speaker, S_other) of one layer by loops over pairs of clips; only speakers with two sessions.

    Pairs of clips count equally in a pair of sessions, sessions in a speaker, speakers in the mean.
    """
    names = sorted({s for s in speaker if len({c for c, w in zip(session, speaker, strict=True) if w == s}) > 1})

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    def between(c, d):
        return mean(
            collision_of_clips(clips[i], clips[j])
            for i in range(len(clips))
            for j in range(len(clips))
            if i != j and session[i] == c and session[j] == d
        )

    own = {s: sorted({c for c, w in zip(session, speaker, strict=True) if w == s}) for s in names}
    same_session = mean(mean(between(c, c) for c in own[s]) for s in names)
    same_speaker = mean(mean(between(c, d) for c in own[s] for d in own[s] if c != d) for s in names)
    other = mean(mean(between(c, d) for c in own[s] for d in own[t]) for s in names for t in names if s != t)
    return same_session, same_speaker, other


def far_in_session(clips, masks, far, same_clip):
    """Share of equal codes among far frames of one clip, or of two clips, of one session, one layer."""
    equal = total = 0
    for a in range(len(clips)):
        for b in range(len(clips)):
            if (a == b) != same_clip:
                continue
            for i in range(len(clips[a])):
                for j in range(len(clips[b])):
                    if abs(i - j) > far and masks[a][i] and masks[b][j]:
                        equal += clips[a][i] == clips[b][j]
                        total += 1
    return equal / total
