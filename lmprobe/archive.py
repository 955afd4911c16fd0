"""Archive: capture straight to disk, shard by shard, so that neither memory nor an interruption is a limit.

Conventions. A folder is an `ActivationStore`: safetensors shards and a manifest that names all that a state depends on
(weights, tokenizer, chat template, dtype, attention implementation, versions, prompts, selector, layers, padding,
what is installed at the model). A folder made of anything else is refused. Prompts go longest first; a shard counts
when it is written whole, and a capture that was interrupted goes on after the last one, with the same bytes as if it
had not been: the shards, and the batches in them, do not depend on where it stopped. Groups and labels are no part of
what is named: they may be others the next time.

Values are float32 (float64 of a float64 model), half precision without loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lmprobe.capture import activations_of, capture, model_record
from lmprobe.capture_job import wanted_layers
from lmprobe.inputs import Progress
from lmprobe.models import LanguageModel, Prompt, Template
from lmprobe.selectors import Selector, selector
from probecore.activations import Activations, Label
from probecore.errors import InputError, shorten
from probecore.provenance import digest, digest_of_record
from probecore.store import ActivationStore, write_bytes
from probecore.validation import at_least

TEXTS = "texts.json"
SHARD_MB = 256


def capture_to(
    folder: str | Path,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    layers: str | Sequence[str | int] = "all",
    at: str | Selector = "last",
    groups: ArrayLike | None = None,
    labels: Mapping[str, Label | ArrayLike] | None = None,
    names: Sequence[str] | None = None,
    system: str | None = None,
    template: Template = "auto",
    max_new_tokens: int = 30,
    batch_tokens: int = 4096,
    deterministic: bool = False,
    shard_mb: int = SHARD_MB,
    progress: Progress | None = None,
) -> Activations:
    """Capture prompts into a folder and return the activations, whose layers are read from there when asked for.

    The arguments are those of `capture`; `at` must be a selector that has a name. names : (prompts,), all different.
    shard_mb : megabytes of states held in memory and written at a time. What a model wrote, for generated tokens,
    stands beside the states in texts.json (`written_texts`). `load_activations` of probecore.store reads the folder.

    Raises what `capture` raises, and `InputError` for a folder that holds something else.
    """
    place = selector(at) if isinstance(at, str) else at
    if not isinstance(place, Selector):
        raise InputError("a capture on disk must name its tokens; got a function: give a selector such as 'last'")
    at_least(shard_mb, 1, "shard_mb")
    wanted = wanted_layers(lm, layers)
    rows = lm.format_all(prompts, system, template, room=max_new_tokens if place.scope == "generated" else 0)
    shown = [f"prompt {i}" for i in range(len(rows))] if names is None else [str(name) for name in names]
    if len(shown) != len(rows) or len(set(shown)) != len(shown):
        raise InputError(f"names must be different and one per prompt, {len(rows)}; got {len(set(shown))} names")
    options: dict[str, Any] = {
        "layers": wanted, "at": place, "system": system, "template": template, "max_new_tokens": max_new_tokens,
        "batch_tokens": batch_tokens, "deterministic": deterministic,
    }  # fmt: skip
    info = {
        **model_record(lm),
        "representation": f"residual stream at {place}",
        **{name: options[name] for name in ("template", "deterministic")},
    }
    key = _key(lm, info, rows, shown, prompts, {**options, "at": str(place), "layers": list(wanted)})
    store = ActivationStore(folder, key)
    done = 0
    for shard in _shards(lm, rows, wanted, place, max_new_tokens, shard_mb):
        stored = {_prompt_of(item, place) for item in store.items}
        left = [i for i in shard if shown[i] not in stored]
        if left:
            part = capture(lm, [prompts[i] for i in left], names=[shown[i] for i in left], **options)
            if place.scope == "generated":
                _keep_texts(Path(folder), part.info["texts"], [shown[i] for i in left])
            store.append(part.items, {layer: part.values(layer) for layer in part.layers})
        done += len(shard)
        if progress is not None:
            progress(done, len(rows))
    return _finish(store, place, shown, groups, labels, info)


def written_texts(folder: str | Path) -> dict[str, str]:
    """Return what the model wrote after each prompt of a capture of generated tokens, by the prompt's name."""
    place = Path(folder) / TEXTS
    if not place.is_file():
        raise InputError(f"{place.parent.name!r} holds no generated texts: capture generated tokens into it")
    found: dict[str, str] = json.loads(place.read_text(encoding="utf-8"))
    return found


def _key(
    lm: LanguageModel, info: Mapping[str, Any], rows: Sequence[Sequence[int]], names: Sequence[str],
    prompts: Sequence[Prompt], options: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    facts = ("model", "revision", "architecture", "weights_hash", "tokenizer_hash", "template_hash", "dtype",
             "attention", "device", "versions")  # fmt: skip
    asked = digest(*(f"{name} {list(row)}" for name, row in zip(names, rows, strict=True)))
    texts = digest_of_record({"prompts": [p if isinstance(p, str) else list(p) for p in prompts]})
    return {
        "what": "lmprobe capture",
        **{name: lm.info[name] for name in facts},
        "interventions": info.get("interventions", []),
        "prompts": {"n": len(rows), "ids": asked, "texts": texts},
        **options,
    }


def _shards(
    lm: LanguageModel, rows: Sequence[Sequence[int]], wanted: Sequence[str], place: Selector, new: int, shard_mb: int
) -> list[list[int]]:
    """Return prompts, longest first, cut where their states would exceed a shard."""
    size = 8 if str(lm.dtype) == "torch.float64" else 4
    item = size * len(wanted) * int(lm.info["width"])
    shards: list[list[int]] = [[]]
    room = limit = shard_mb * 2**20
    for i in np.argsort([-len(row) for row in rows], kind="stable").tolist():
        kept = new if place.scope == "generated" else len(rows[i]) if place.per_token else 1
        if shards[-1] and room < kept * item:
            shards.append([])
            room = limit
        shards[-1].append(i)
        room -= kept * item
    return shards


def _prompt_of(item: str, place: Selector) -> str:
    return item.rpartition(" token ")[0] if place.per_token else item


def _keep_texts(folder: Path, texts: Sequence[str], names: Sequence[str]) -> None:
    """Write the texts of a shard before its states, so that no state is without its text."""
    known = written_texts(folder) if (folder / TEXTS).is_file() else {}
    whole = known | dict(zip(names, texts, strict=True))
    write_bytes(folder / TEXTS, json.dumps(whole, indent=1, ensure_ascii=False).encode())


def _finish(
    store: ActivationStore, place: Selector, names: Sequence[str], groups: ArrayLike | None,
    labels: Mapping[str, Label | ArrayLike] | None, info: Mapping[str, Any],
) -> Activations:  # fmt: skip
    """Put the items in the order of the prompts and spread groups and labels over them."""
    of_prompt: dict[str, list[str]] = {name: [] for name in names}
    for item in store.items:
        of_prompt[_prompt_of(item, place)].append(item)
    empty = [name for name, items in of_prompt.items() if not items]
    if empty:
        raise InputError(f"every prompt must have been captured; {shorten(empty, most=3)} have no item: capture anew")
    items = [item for each in of_prompt.values() for item in each]
    numbers = None
    if place.per_token:
        numbers = [np.array([int(item.rpartition(" ")[2]) for item in each]) for each in of_prompt.values()]
    blank = {"-": np.zeros((len(items), 1))}
    spread = activations_of(blank, len(names), numbers, groups, labels, names, info)
    assert spread.items == tuple(items)
    return store.finish(spread.groups, spread.labels, items, info=info)
