"""Partitions: prompts in extract, select and test splits that share no near-duplicates, and a count of test openings.

Conventions. Two prompts are neighbours when the Jaccard similarity of their word sets (`[a-z0-9']+`, lower case, curly
apostrophes made straight) is at least `threshold`, 0.5. A cluster is a set of near-duplicates: with complete linkage
all pairs in it are neighbours; with single linkage it is a connected component, and long chains of prompts that are not
alike can form (149 of the 520 AdvBench prompts). Clusters never stand in two splits. Neighbours of different complete
clusters may; then prompts are left out, as few as greedy choice finds, until no prompt has a neighbour in another
split.

The cluster is also the unit of resampling: near-duplicates are no independent observations.

>>> jaccard("How do I bake bread?", "How do I bake good bread?"), word_set("Don’t stop") == {"don't", "stop"}
(0.8333333333333334, True)
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from probecore.errors import DesignError, InputError, shorten
from probecore.provenance import digest
from probecore.results import Row
from probecore.seeds import generator
from probecore.validation import one_of, one_per_item

SPLITS = ("extract", "select", "test")
SHARES = (0.5, 0.2, 0.3)
THRESHOLD = 0.5
WORD = re.compile(r"[a-z0-9']+")
Linkage = Literal["complete", "single"]
Ints = NDArray[np.int64]


def word_set(text: str) -> frozenset[str]:
    """Return the set of a text's words."""
    return frozenset(WORD.findall(text.lower().replace("\u2019", "'")))


def jaccard(first: str, second: str) -> float:
    """Return |A and B| / |A or B| of the word sets of two texts, 1 for two texts without words."""
    a, b = word_set(first), word_set(second)
    return len(a & b) / len(a | b) if a | b else 1.0


def neighbours(
    texts: Sequence[str], others: Sequence[str] | None = None, threshold: float = THRESHOLD
) -> sparse.csr_matrix:
    """Return the similarities of at least `threshold` between texts and others, sparse (texts, others).

    others : None compares the texts with each other, without the diagonal. Texts without words are alike only to
    texts without words. Raises `InputError` for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise InputError(f"the threshold of near-duplicates must lie in (0, 1]; got {threshold:g}")
    rows = [word_set(text) or frozenset({""}) for text in texts]
    columns = rows if others is None else [word_set(text) or frozenset({""}) for text in others]
    code = {word: i for i, word in enumerate(sorted(set().union(*rows, *columns)))}
    a, b = _incidence(rows, code), _incidence(columns, code)
    shared = (a @ b.T).tocoo()
    sizes_a, sizes_b = np.array([len(r) for r in rows]), np.array([len(c) for c in columns])
    similarity = shared.data / (sizes_a[shared.row] + sizes_b[shared.col] - shared.data)
    kept = similarity >= threshold
    if others is None:
        kept &= shared.row != shared.col
    shape = (len(rows), len(columns))
    return sparse.csr_matrix((similarity[kept], (shared.row[kept], shared.col[kept])), shape=shape)


def clusters(texts: Sequence[str], *, threshold: float = THRESHOLD, linkage: Linkage = "complete") -> Ints:
    """Return the cluster of near-duplicates of each text, (texts,) codes from 0 in order of appearance.

    "complete" joins the two clusters whose least similar pair is most similar, as long as that pair is a neighbour.
    """
    one_of(linkage, ("complete", "single"), "linkage")
    graph = neighbours(texts, threshold=threshold)
    component = sparse.csgraph.connected_components(graph, directed=False)[1].astype(np.int64)
    if linkage == "single":
        return _in_order(component)
    found = np.empty(len(texts), dtype=np.int64)
    n = 0
    for code in range(int(component.max(initial=-1)) + 1):
        members = np.flatnonzero(component == code)
        inside = _complete(graph[members][:, members].toarray())
        found[members] = n + inside
        n += int(inside.max()) + 1
    return _in_order(found)


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


def overlap_report(texts: Sequence[str], sets: Mapping[str, Sequence[str]], threshold: float = THRESHOLD) -> list[Row]:
    """Return one row per other set: how many of its texts have a near-duplicate, or all their words, among `texts`."""
    rows: list[Row] = []
    for name, others in sets.items():
        graph = neighbours(others, texts, threshold)
        near = np.diff(graph.indptr) > 0
        best = graph.max(axis=1).toarray().ravel() if graph.nnz else np.zeros(len(others))
        rows.append({
            "set": name, "n_texts": len(others), "near_duplicates": int(near.sum()),
            "same_words": int((best == 1).sum()), "share": float(near.mean()) if len(others) else None,
            "threshold": threshold,
        })  # fmt: skip
    return rows


def refuse_overlap(
    used: Sequence[str], test: Sequence[str], what: str = "test prompts", threshold: float = THRESHOLD
) -> None:
    """Raise `DesignError` when a test prompt is, or is a near-duplicate of, one that was used to find or choose.

    A number measured on what it was selected on is too good: the best of 60 equal trials at 8 % shows 2.5 %.
    """
    graph = neighbours(test, used, threshold)
    near = np.flatnonzero(np.diff(graph.indptr))
    if len(near):
        raise DesignError(
            f"{what} must be new: none may be a near-duplicate (word-Jaccard >= {threshold:g}) of the prompts used to "
            f"find and choose the direction; there are {len(near)}, prompts {shorten(near.tolist(), most=5)}: give "
            "others"
        )


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


def _incidence(rows: Sequence[frozenset[str]], code: Mapping[str, int]) -> sparse.csr_matrix:
    lengths = [len(row) for row in rows]
    columns = np.array([code[word] for row in rows for word in sorted(row)], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), len(code)))


def _in_order(codes: Ints) -> Ints:
    first = {code: i for i, code in enumerate(dict.fromkeys(codes.tolist()))}
    return np.array([first[code] for code in codes.tolist()], dtype=np.int64)


def _complete(similarity: NDArray[np.float64]) -> Ints:
    """Return complete-linkage clusters of a component; similarity 0 stands for "no neighbour" and never joins."""
    n = len(similarity)
    if n == 1:
        return np.zeros(1, dtype=np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distance = 1 - similarity  # 1 where they are no neighbours
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "complete")
    return np.asarray(fcluster(tree, 1 - 1e-9, "distance"), dtype=np.int64) - 1


def _joined(cluster: Ints, families: NDArray[np.generic]) -> Ints:
    """Return connected components of texts that share a cluster or a family."""
    n = len(cluster)
    family = np.unique(families, return_inverse=True)[1]
    links = sparse.coo_matrix(
        (np.ones(2 * n), (np.tile(np.arange(n), 2), np.concatenate([cluster, cluster.max() + 1 + family]))),
    ).tocsr()
    graph = links @ links.T
    return _in_order(sparse.csgraph.connected_components(graph, directed=False)[1].astype(np.int64))


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
