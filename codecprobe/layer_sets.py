"""Sets of layers, as one writes them: `0`, `1-2`, `0,3-7`, or a word for a family of sets.

    each        every layer by itself (leave one out)
    only        all layers but one (one layer is kept)
    prefixes    all layers above k, for every k (layers 0 to k are kept)
    all         all layers at once

>>> parse("0,3-5", 8), name_of((1, 2)), parse("prefixes", 4)
(((0, 3, 4, 5),), '1-2', ((1, 2, 3), (2, 3), (3,)))
"""

from collections.abc import Iterable

from probecore.errors import InputError

LayerSet = tuple[int, ...]
WORDS = ("each", "only", "prefixes", "all")


def parse(text: str, n_layers: int) -> tuple[LayerSet, ...]:
    """Return the sets that a word or a list of numbers and ranges stands for.

    Raises `InputError` for anything else, and for a layer that the codec does not have.
    """
    everything = tuple(range(n_layers))
    families: dict[str, list[LayerSet]] = {
        "each": [(k,) for k in everything],
        "only": [everything[:k] + everything[k + 1 :] for k in everything],
        "prefixes": [everything[k + 1 :] for k in everything],
        "all": [everything],
    }
    if text.strip() in families:
        return tuple(layers for layers in families[text.strip()] if layers)
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ends = (first, last) if dash else (first, first)
        if not all(end.isdecimal() for end in ends) or not int(ends[0]) <= int(ends[1]) < n_layers:
            raise InputError(
                f"--layers must name layers 0 to {n_layers - 1} as in 0, 1-2 or 0,3-5, or be one of "
                f"{', '.join(WORDS)}; got {text!r}"
            )
        found |= set(range(int(ends[0]), int(ends[1]) + 1))
    return (tuple(sorted(found)),)


def parse_all(texts: Iterable[str], n_layers: int) -> tuple[LayerSet, ...]:
    """Return all sets that are named, each once, in the order in which they are named."""
    return tuple(dict.fromkeys(one for text in texts for one in parse(text, n_layers)))


def default_sets(n_layers: int) -> tuple[LayerSet, ...]:
    """Return every layer by itself, layers 1-2, those after them, all but layer 0, and all.

    These are the groups of the reading "layer 0 what is said, layers 1-2 who speaks, the rest how".
    """
    groups = [range(1, min(3, n_layers)), range(3, n_layers), range(1, n_layers), range(n_layers)]
    return tuple(dict.fromkeys([(k,) for k in range(n_layers)] + [tuple(g) for g in groups if len(g)]))


def name_of(layers: LayerSet) -> str:
    """Return a set as it is written: `0`, `1-2`, `0,3-5`; "none" when it is empty."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "none"
