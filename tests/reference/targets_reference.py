"""Slow references for probes of frames: loops and scikit-learn instead of sums and shared factorisations."""

from collections import defaultdict
from fractions import Fraction
from itertools import permutations

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler


def phone_seconds(phones, names, n_frames, rate):
    """Seconds of each phone in each frame, one overlap at a time."""
    out = np.zeros((n_frames, len(names)))
    for t in range(n_frames):
        for p in phones:
            low, high = max(p.start_s, t / rate), min(p.end_s, (t + 1) / rate)
            if p.name in names and high > low:
                out[t, names.index(p.name)] += high - low
    return out


def joint(codes, seconds):
    """Seconds of (code, phone) as a dictionary of dictionaries."""
    table = defaultdict(lambda: defaultdict(float))
    for c, row in zip(codes, seconds, strict=True):
        for y, s in enumerate(row):
            if s > 0:
                table[int(c)][y] += s
    return table


def pnmi_and_purities(codes, seconds):
    """PNMI by sum of p log p(y,z)/p(y)p(z), phone purity, cluster purity."""
    table = joint(codes, seconds)
    total = sum(sum(row.values()) for row in table.values())
    of_code = {z: sum(row.values()) / total for z, row in table.items()}
    of_phone = defaultdict(float)
    for row in table.values():
        for y, s in row.items():
            of_phone[y] += s / total
    information = sum(
        s / total * np.log2(s / total / (of_code[z] * of_phone[y])) for z, row in table.items() for y, s in row.items()
    )
    entropy = -sum(p * np.log2(p) for p in of_phone.values())
    phone_purity = sum(max(row.values()) for row in table.values()) / total
    cluster_purity = sum(max(row.get(y, 0.0) for row in table.values()) for y in of_phone) / total
    return information / entropy, phone_purity, cluster_purity


def warp(first, second, cost):
    """Mean cost along the best of all paths, by trying every path (total, then length)."""

    def paths(i, j):
        here = cost(first[i], second[j])
        if i == len(first) - 1 and j == len(second) - 1:
            return [(here, 1)]
        found = []
        for di, dj in ((1, 0), (0, 1), (1, 1)):
            if i + di < len(first) and j + dj < len(second):
                found += [(here + total, 1 + length) for total, length in paths(i + di, j + dj)]
        return found

    total, length = min(paths(0, 0))
    return total / length


def abx(tokens, codes, cost, mode, without=None):
    """ABX error by its definition: cells of (A, B, context, speaker, speaker of x), averaged level by level."""
    if without is not None:
        tokens = [t for t in tokens if t.speaker != without]
    words = [codes[t.first : t.first + t.n_frames].tolist() for t in tokens]
    known = {}

    def d(i, j):
        key = (min(i, j), max(i, j))
        if key not in known:
            known[key] = warp(words[key[0]], words[key[1]], cost)
        return known[key]

    cells = defaultdict(list)
    for a, b, x in (
        (a, b, x)
        for a, b in permutations(range(len(tokens)), 2)
        if tokens[a].context == tokens[b].context
        and tokens[a].phone != tokens[b].phone
        and tokens[a].speaker == tokens[b].speaker
        for x in range(len(tokens))
    ):
        same = tokens[x].phone == tokens[a].phone and tokens[x].context == tokens[a].context
        who = tokens[x].speaker == tokens[a].speaker
        if a == x or not same or who != (mode == "within"):
            continue
        near, far = d(a, x), d(b, x)
        wrong = Fraction(1) if near > far else Fraction(1, 2) if near == far else Fraction(0)
        key = (tokens[a].phone, tokens[b].phone, tokens[a].speaker, tokens[x].speaker, tokens[a].context)
        cells[key].append(wrong)
    level = {key: sum(values) / len(values) for key, values in cells.items()}
    for depth in (4, 2):
        up = defaultdict(list)
        for key, value in level.items():
            up[key[:depth]].append(value)
        level = {key: sum(values) / len(values) for key, values in up.items()}
    return float(sum(level.values()) / len(level)) if level else float("nan")


def held_out_score(values, labels, groups, n_classes):
    """Leave-one-group-out ridge by scikit-learn, scaled inside each fold: accuracy, or R2 for numbers.

    The penalty is the number of features that vary, the mean squared norm of the standardised training items.
    """
    predicted = np.empty(len(labels))
    for g in np.unique(groups):
        train, test = groups != g, groups == g
        scaler = StandardScaler().fit(values[train])
        x, x_t = scaler.transform(values[train]), scaler.transform(values[test])
        probe = Ridge(alpha=float((values[train].std(axis=0) > 1e-12).sum()))
        if n_classes:
            probe.fit(x, 2 * np.eye(n_classes)[labels[train]] - 1)
            predicted[test] = probe.predict(x_t).argmax(axis=1)
        else:
            predicted[test] = probe.fit(x, labels[train]).predict(x_t)
    if n_classes:
        return float((predicted == labels).mean())
    return float(1 - np.square(labels - predicted).sum() / np.square(labels - labels.mean()).sum())
