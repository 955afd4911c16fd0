"""Speed of the probe engine beside scikit-learn's own loop, expert scikit-learn and the bare product, in one run.

Two problems, ridge with features standardised inside the folds, 5 folds of whole groups, float64:
    A   16 layers, 50 items, 512 features, 1,000 permutations (80,080 fits), and 200 bootstrap refits of 16 layers
    B   28 layers, 2,000 items, 1,024 features, 200 permutations (28,140 fits), one dimension 300 times larger

Beside ours stand: a loop of scikit-learn fits (StandardScaler + RidgeClassifier), what an expert does (all labelings as
targets of one multi-output Ridge), and the floor, the product of the finished operator with the labels. Every fit of
the loop is the same work, so it is timed on a sample of labelings and scaled; so is B on a sample of layers. All thread
pools are pinned to --threads; CPU and wall time are both shown, and ratios are of CPU time when the machine is busy.
Ratios to the loop of an unpinned machine would be void.

Run:     python benchmarks/probes.py [--threads 2] [--sample 2] [--part A|B]
"""

import argparse
import time
import warnings

import numpy as np
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from probecore.probes.layers import probe_layers
from probecore.probes.ridge import ridge_decisions, ridge_operator
from probecore.probes.scores import score_two_classes
from probecore.splits import group_folds

PARTS = {"A": (16, 50, 512, 1000, 10), "B": (28, 2000, 1024, 200, 100)}


class Clock:
    """CPU and wall seconds of the block."""

    def __enter__(self):
        self.start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_):
        self.cpu, self.wall = time.process_time() - self.start[0], time.perf_counter() - self.start[1]

    def scaled(self, factor):
        self.cpu, self.wall = self.cpu * factor, self.wall * factor
        return self


def best_of(function, repeats):
    """Return the fastest clock of some repeats (after one to warm up) and the last result."""
    result, clocks = function(), []
    for _ in range(repeats):
        with Clock() as clock:
            result = function()
        clocks.append(clock)
    return min(clocks, key=lambda clock: clock.cpu), result


def problem(layers, n, d, permutations, n_groups):
    """Return features per layer, labelings (n, 1 + permutations) of 0 and 1, groups and folds."""
    rng = np.random.default_rng(0)
    groups, y = np.repeat(np.arange(n_groups), n // n_groups), np.arange(n) % 2
    offsets = rng.normal(size=(layers, n_groups, d))[:, groups]
    x = rng.normal(size=(layers, n, d)) + 0.5 * offsets + 0.1 * y[:, None] * rng.normal(size=(layers, 1, d))
    x[..., 7] = x[..., 7] * 300 + 500
    labels = np.stack([y] + [rng.permutation(y) for _ in range(permutations)], 1)
    return x, labels, groups, group_folds(groups, 5)


def model_of(ridge):
    return make_pipeline(StandardScaler(), ridge)


def loop_counts(x, labels, folds, alpha):
    """Return right answers (layers, labelings) by one scikit-learn fit each."""
    counts = np.zeros((len(x), labels.shape[1]), dtype=int)
    for layer, values in enumerate(x):
        for p in range(labels.shape[1]):
            for train, test in folds.pairs:
                model = model_of(RidgeClassifier(alpha=alpha)).fit(values[train], labels[train, p])
                counts[layer, p] += (model.predict(values[test]) == labels[test, p]).sum()
    return counts


def expert_counts(x, labels, pairs, alpha):
    """Return right answers (layers, labelings) with all labelings as targets of one Ridge."""
    targets = 2.0 * labels - 1
    counts = np.zeros((len(x), labels.shape[1]), dtype=int)
    for layer, values in enumerate(x):
        for train, test in pairs:
            model = model_of(Ridge(alpha=alpha)).fit(values[train], targets[train])
            counts[layer] += ((model.predict(values[test]) > 0) == (labels[test] > 0)).sum(0)
    return counts


def line(name, clock, ours=None, target=""):
    unit, factor = ("ms", 1e3) if clock.wall < 1 else ("s", 1.0)
    ratio = f"{clock.cpu / ours.cpu:10.1f}x cpu {clock.wall / ours.wall:10.1f}x wall" if ours else " " * 31
    print(
        f"  {name:46s} cpu {clock.cpu * factor:8.1f} wall {clock.wall * factor:8.1f} {unit:2s} {ratio}  {target}",
        flush=True,
    )


def small(sample):
    _, n, d, permutations, _ = PARTS["A"]
    x, labels, groups, folds = problem(*PARTS["A"])
    xt, codes = torch.tensor(x), torch.tensor(labels, dtype=torch.float64)
    targets = 2 * codes - 1
    rows = torch.tensor(np.concatenate(folds.tests()))
    scored = codes[rows]

    def ours():  # scored 4 layers at a time, while the decisions are in the cache
        operator = ridge_operator(xt, folds.pairs, alpha=float(d))
        return [score_two_classes(part @ targets, scored) for part in operator.split(4)]

    operator = ridge_operator(xt, folds.pairs, alpha=float(d))
    floor, _ = best_of(lambda: operator @ targets, 20)
    clock, scores = best_of(ours, 20)
    line("ours: accuracy, balanced accuracy, margin", clock)
    print(f"  {'':46s} {clock.wall / floor.wall:.1f} times the floor below in wall time (target: at most 9)")
    line("floor: operator times labels", floor)
    counts = (torch.cat([part.value for part in scores]) * n).round().int().numpy()
    with Clock() as loop:
        reference = loop_counts(x, labels[:, :sample], folds, float(d))
    same = (reference == counts[:, :sample]).all()
    loop.scaled((permutations + 1) / sample)
    line(f"scikit-learn loop ({sample} of {permutations + 1} labelings)", loop, clock, "target 10,000")
    expert, reference = best_of(lambda: expert_counts(x, labels, folds.pairs, float(d)), 1)
    line("scikit-learn Ridge, labelings as targets", expert, clock, "target 15")
    print(f"  right answers equal: loop {same}, expert {(reference == counts).all()}")
    call, _ = best_of(
        lambda: probe_layers(x, labels[:, 0], groups=groups, n_permutations=permutations, n_bootstrap=0), 3
    )
    line("probe_layers, no intervals", call)
    whole, _ = best_of(lambda: probe_layers(x, labels[:, 0], groups=groups, n_permutations=permutations), 3)
    line("probe_layers", whole)
    print(f"  200 bootstrap refits of 16 layers: cpu {whole.cpu - call.cpu:.2f} s (target: below 0.5)")


def large(sample):
    layers, n, d, permutations, n_groups = PARTS["B"]
    timed = min(sample, 2)
    x, labels, _, folds = problem(timed, n, d, permutations, n_groups)
    codes = torch.tensor(labels)
    rows = torch.tensor(np.concatenate(folds.tests()))

    def ours():
        return [
            score_two_classes(torch.cat(ridge_decisions(layer, folds.pairs, codes, 2, alpha=float(d))), scored)
            for layer in xt
        ]

    xt, scored = torch.tensor(x), codes[rows].double()
    clock, scores = best_of(ours, 2)
    line(f"ours ({timed} of {layers} layers)", clock.scaled(layers / timed))
    counts = (scores[0].value * n).round().int().numpy()
    with Clock() as loop:
        reference = loop_counts(x[:1], labels[:, :1], folds, float(d))
    line(
        f"scikit-learn loop (1 of {layers * (permutations + 1)})",
        loop.scaled(layers * (permutations + 1)),
        clock,
        "target 450 on 2 cores",
    )
    with Clock() as expert:
        expert_counts(x[:1], labels, folds.pairs[:2], float(d))
    line("scikit-learn Ridge, labelings as targets", expert.scaled(layers * len(folds) / 2), clock)
    print(f"  right answers equal: loop {(reference[0] == counts[:1]).all()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=2, help="labelings (A) or layers (B, at most 2) that are timed")
    parser.add_argument("--part", choices=[*PARTS], help="by default both")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    threadpool_limits(arguments.threads)
    pools = sorted({f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info()})
    print(f"torch {torch.__version__}, {arguments.threads} threads; pools: {', '.join(pools)}")
    for part in [arguments.part] if arguments.part else PARTS:
        layers, n, d, permutations, _ = PARTS[part]
        print(f"{part}: {layers} layers x {n} items x {d} features x {permutations} permutations")
        (small if part == "A" else large)(arguments.sample)


if __name__ == "__main__":
    main()
