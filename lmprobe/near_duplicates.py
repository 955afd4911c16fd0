"""Near-duplicates among prompts: who is alike, clusters of them, and sets that overlap.

Conventions. Two prompts are neighbours when the Jaccard similarity of their word sets (`[a-z0-9']+`, lower case, curly
apostrophes made straight) is at least `threshold`, 0.5. A cluster is a set of near-duplicates: with complete linkage
all pairs in it are neighbours; with single linkage it is a connected component, and long chains of prompts that are not
alike can form (149 of the 520 AdvBench prompts).

The cluster is the unit of resampling: near-duplicates are no independent observations.

>>> jaccard("How do I bake bread?", "How do I bake good bread?"), word_set("Don’t stop") == {"don't", "stop"}
(0.8333333333333334, True)
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from probecore.errors import DesignError, InputError, shorten
from probecore.results import Row
from probecore.validation import one_of

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
        return in_order(component)
    found = np.empty(len(texts), dtype=np.int64)
    n = 0
    for code in range(int(component.max(initial=-1)) + 1):
        members = np.flatnonzero(component == code)
        inside = _complete(graph[members][:, members].toarray())
        found[members] = n + inside
        n += int(inside.max()) + 1
    return in_order(found)


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


def _incidence(rows: Sequence[frozenset[str]], code: Mapping[str, int]) -> sparse.csr_matrix:
    lengths = [len(row) for row in rows]
    columns = np.array([code[word] for row in rows for word in sorted(row)], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), len(code)))


def in_order(codes: Ints) -> Ints:
    """Return codes renumbered from 0 in order of appearance."""
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
