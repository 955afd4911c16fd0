"""The models a command was given: names, folders or opened models, and the short names that rows show."""

import os
from collections.abc import Sequence
from pathlib import Path

from lmprobe.models import LanguageModel
from probecore.errors import InputError

Model = str | os.PathLike[str] | LanguageModel


def wanted_models(models: Sequence[Model] | Model | None) -> list[Model]:
    """Return the models as a list; None is the packaged organisms."""
    if models is None:
        from lmprobe.organisms.folder import packaged_organisms

        return [organism.folder for organism in packaged_organisms()]
    if isinstance(models, (str, os.PathLike, LanguageModel)):
        return [models]
    if not len(models):
        raise InputError("terrain needs at least 1 model; got an empty list: leave models out for the organisms")
    return list(models)


def model_names(models: Sequence[Model]) -> list[str]:
    """Return a short name of each model, different ones for different models: folders by their last part."""
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
