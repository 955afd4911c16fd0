"""The models a command was given: names, folders or opened models, and the short names that rows show."""

import os
from collections.abc import Sequence
from pathlib import Path

from lmprobe.models import LanguageModel
from probecore.errors import InputError

Model = str | os.PathLike[str] | LanguageModel
LONG, WORTH, SEPARATORS, ELLIPSIS = 20, 6, "-_/. ", "…"


def as_list(models: Sequence[Model] | Model) -> list[Model]:
    """Return one model, or several, as a list."""
    return [models] if isinstance(models, (str, os.PathLike, LanguageModel)) else list(models)


def wanted_models(models: Sequence[Model] | Model | None) -> list[Model]:
    """Return the models as a list; None is the packaged organisms."""
    if models is None:
        from lmprobe.organisms.folder import packaged_organisms

        return [organism.folder for organism in packaged_organisms()]
    found = as_list(models)
    if not found:
        raise InputError("terrain needs at least 1 model; got an empty list: leave models out for the organisms")
    return found


def model_names(models: Sequence[Model]) -> list[str]:
    """Return a short name of each model, different ones for different models.

    Folders by their last part. What long names begin with alike becomes an ellipsis; `name_notes` says what it was.
    """
    return _shortened(full_names(models))


def name_notes(models: Sequence[Model]) -> list[str]:
    """Return what shortened names stand for; nothing where none was shortened."""
    names = full_names(models)
    start = _common_start(names)
    return [f"names of models: {ELLIPSIS} stands for {start!r}"] if start else []


def full_names(models: Sequence[Model]) -> list[str]:
    """Return the name of each model: of a folder its last part, numbered where two are equal."""
    names: list[str] = []
    for model in models:
        if isinstance(model, LanguageModel):
            name = model.name
        else:
            path = Path(model)
            name = path.resolve().name if path.is_dir() else str(model)
        base, n = name, 2
        while name in names:
            name, n = f"{base} ({n})", n + 1
        names.append(name)
    return names


def _shortened(names: Sequence[str]) -> list[str]:
    """Return names without what they begin with alike.

    >>> _shortened(["org/Long-Model-7B", "org/Long-Model-7B-Instruct"]), _shortened(["base", "base-2"])
    (['…7B', '…7B-Instruct'], ['base', 'base-2'])
    """
    start = _common_start(names)
    return [ELLIPSIS + name[len(start) :] for name in names] if start else list(names)


def _common_start(names: Sequence[str]) -> str:
    """Return what long names begin with alike, up to a separator, "" where it is not worth leaving out."""
    if len(names) < 2 or max(map(len, names)) <= LONG:
        return ""
    same = names[0]
    while same and (same[-1] not in SEPARATORS or not all(name.startswith(same) and name != same for name in names)):
        same = same[:-1]
    return same if len(same) >= WORTH else ""
