"""Partitions: prompts in extract, select and test splits that share no near-duplicates, and a count of test openings.

Conventions. Clusters of near-duplicates (`lmprobe.near_duplicates`) never stand in two splits. Neighbours of different
complete clusters may; then prompts are left out, as few as greedy choice finds, until no prompt has a neighbour in
another split.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lmprobe.near_duplicates import THRESHOLD, Ints, Linkage, clusters, in_order, neighbours
from probecore.errors import DesignError, InputError
from probecore.provenance import digest
from probecore.seeds import generator
from probecore.validation import one_of, one_per_item

SPLITS = ("extract", "select", "test")
SHARES = (0.5, 0.2, 0.3)


@dataclass(frozen=True)
class Partition:
    """Texts in extract, select and test.

    split : (texts,) name of each text's split, "" for one left out. cluster : (texts,) its near-duplicate cluster.
    left_out : texts left out, because a neighbour stands in another split. digest : of the texts of the test split.
    """

    split: tuple[str, ...]
    cluster: Ints = field(repr=False)
    threshold: float
    linkage: Linkage
    left_out: tuple[int, ...]
    digest: str

    def index(self, split: str) -> Ints:
        """Return the positions of a split's texts."""
        one_of(split, SPLITS, "split")
        return np.flatnonzero(np.array(self.split) == split)

    @property
    def sizes(self) -> dict[str, int]:
        """Texts of each split, and those left out."""
        return {**{name: len(self.index(name)) for name in SPLITS}, "left out": len(self.left_out)}

    @property
    def largest_cluster(self) -> int:
        """Number of texts of the largest cluster."""
        return int(np.bincount(self.cluster).max())

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.cluster.max()) + 1


def partition(
    texts: Sequence[str],
    categories: Sequence[str] | None = None,
    *,
    shares: Sequence[float] = SHARES,
    families: Sequence[str] | None = None,
    threshold: float = THRESHOLD,
    linkage: Linkage = "complete",
    seed: int = 0,
) -> Partition:
    """Split texts into extract, select and test so that no text has a near-duplicate in another split.

    categories : (texts,) each of them is split in these shares as far as its clusters allow. families : (texts,) texts
    that belong together (a prompt and its twin) and share a split as a cluster does; they are joined to the clusters.
    Raises `InputError` for shares that are no three positive numbers, `DesignError` when a category has no text in a
    split.
    """
    n = len(texts)
    kinds = np.asarray([""] * n if categories is None else one_per_item(categories, n, "categories"))
    weights = np.asarray(shares, dtype=np.float64)
    if weights.shape != (3,) or not (weights > 0).all():
        raise InputError(f"shares must be three positive numbers, of extract, select and test; got {list(shares)}")
    weights = weights / weights.sum()
    cluster = clusters(texts, threshold=threshold, linkage=linkage)
    unit = cluster if families is None else _joined(cluster, np.asarray(one_per_item(families, n, "families")))
    graph = neighbours(texts, threshold=threshold)
    split = _assign(unit, kinds, graph, weights, seed)
    left_out = _leave_out(split, graph)
    names = np.array([*SPLITS, ""])[np.where(np.isin(np.arange(n), left_out), 3, split)]
    for kind in dict.fromkeys(kinds.tolist()):
        empty = [name for name in SPLITS if not ((names == name) & (kinds == kind)).any()]
        if empty:
            raise DesignError(
                f"every split needs prompts of each category; {' and '.join(empty)} of {kind or 'the texts'!r} would "
                f"be empty ({(kinds == kind).sum()} texts in {len(set(unit[kinds == kind].tolist()))} clusters): give "
                "more"
            )
    test = digest(*sorted(text for text, name in zip(texts, names, strict=True) if name == "test"))
    return Partition(tuple(names.tolist()), cluster, threshold, linkage, tuple(left_out), test)


class TestOpenings:
    """Counts how often a test split was measured, in memory and, with a file, over runs; each use is one line there."""

    __test__ = False  # no test class, whatever its name begins with

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lines = [json.loads(line) for line in path.read_text().splitlines()] if path and path.is_file() else []

    def open(self, split: Partition, why: str) -> int:
        """Note one use of the test split and return how often this very split has been opened."""
        self._lines.append({"test": split.digest, "why": why})
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(self._lines[-1]) + "\n")
        return self.count(split)

    def count(self, split: Partition) -> int:
        """Return how often this test split has been opened."""
        return sum(line.get("test") == split.digest for line in self._lines)


def _joined(cluster: Ints, families: NDArray[np.generic]) -> Ints:
    """Return connected components of texts that share a cluster or a family."""
    n = len(cluster)
    family = np.unique(families, return_inverse=True)[1]
    links = sparse.coo_matrix(
        (np.ones(2 * n), (np.tile(np.arange(n), 2), np.concatenate([cluster, cluster.max() + 1 + family]))),
    ).tocsr()
    graph = links @ links.T
    return in_order(sparse.csgraph.connected_components(graph, directed=False)[1].astype(np.int64))


def _assign(
    unit: Ints, kinds: NDArray[np.generic], graph: sparse.csr_matrix, weights: NDArray[np.float64], seed: int
) -> Ints:
    """Give each unit a split: in random order, large ones first, to where its categories lack most.

    A unit goes where its neighbours already are as long as that split does not overflow, so that few are left out.
    """
    kind = np.unique(kinds, return_inverse=True)[1]
    counts = np.zeros((int(unit.max()) + 1, int(kind.max()) + 1))
    np.add.at(counts, (unit, kind), 1)
    wanted = weights[:, None] * counts.sum(axis=0)[None]
    given = np.zeros_like(wanted)
    links = sparse.csr_matrix((np.ones(len(unit)), (unit, np.arange(len(unit)))))
    between = (links @ graph @ links.T).tocsr()
    order = generator(seed, "partition").permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    chosen = np.full(len(counts), -1, dtype=np.int64)
    for code in order.tolist():
        own = counts[code]
        lack = ((wanted - given) / np.maximum(wanted, 1e-9)) @ (own / own.sum())  # share of each quota still free
        near = between.indices[between.indptr[code] : between.indptr[code + 1]]
        at = chosen[near[chosen[near] >= 0]]
        fits = ((given + own) <= np.maximum(wanted, 1.0) + 0.5).all(axis=1) | (own == 0).all()
        beside = [s for s in np.unique(at).tolist() if fits[s]]
        chosen[code] = max(beside, key=lambda s: int((at == s).sum())) if beside else int(lack.argmax())
        given[chosen[code]] += own
    return chosen[unit]


def _leave_out(split: Ints, graph: sparse.csr_matrix) -> list[int]:
    """Return texts to leave out so that no neighbours stand in different splits: always the one with most of them."""
    pairs = graph.tocoo()
    crossing = split[pairs.row] != split[pairs.col]
    row, col = pairs.row[crossing], pairs.col[crossing]
    out: list[int] = []
    while len(row):
        worst = int(np.bincount(row).argmax())
        out.append(worst)
        kept = (row != worst) & (col != worst)
        row, col = row[kept], col[kept]
    return sorted(out)
