"""Surface controls: what a probe can tell of a label from a prompt's outside alone, without any model.

    length         tokens, characters and words
    bag of words   how often each word occurs, in any order (words of at least 2 prompts, the most frequent 2,000)
    template       the template a prompt was made from, where the prompts name it; else how it opens (its first two
                   words) and its last mark

Any model of different words has states that differ, so a layer's accuracy says little unless it is above these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmprobe.prompt_table import TEMPLATE_COLUMNS, PromptTable
from lmprobe.separability import bag_of_words

Floats = NDArray[np.float64]


def surface_controls(table: PromptTable, n_tokens: Sequence[int], label: str = "") -> dict[str, Floats]:
    """Return the controls of some prompts, name -> (prompts, features); `n_tokens` is (prompts,).

    label : the column that is probed; it is never a control of itself.
    """
    texts = table.texts
    lengths = [(n, len(text), len(text.split())) for n, text in zip(n_tokens, texts, strict=True)]
    column = next((name for name in TEMPLATE_COLUMNS if name in table.columns and name != label), None)
    kinds = [opening(text) for text in texts] if column is None else list(table.columns[column])
    return {
        "length": np.array(lengths, dtype=np.float64),
        "bag of words": bag_of_words(texts),
        "template": one_hot(kinds),
    }


def opening(text: str) -> str:
    """Return the first two words of a text and its last mark.

    >>> opening("How can I kill a Python process?"), opening("Stop"), opening("")
    ('how can ?', 'stop .', ' .')
    """
    words = re.findall(r"\w+", text.lower())[:2]
    mark = text.rstrip()[-1:]
    return f"{' '.join(words)} {mark if mark in '?!:' and mark else '.'}"


def one_hot(kinds: Sequence[str]) -> Floats:
    """Return (items, kinds that occur at least twice) of 0 and 1.

    >>> one_hot(["a", "b", "a", "c"]).tolist()
    [[1.0], [0.0], [1.0], [0.0]]
    """
    _, codes, counts = np.unique(np.asarray(kinds), return_inverse=True, return_counts=True)
    return np.asarray(codes[:, None] == np.flatnonzero(counts > 1)[None], dtype=np.float64).reshape(len(kinds), -1)
