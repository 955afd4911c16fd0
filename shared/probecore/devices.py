"""Where things run: one rule from the name a user gives to a torch device."""

from typing import TYPE_CHECKING

from probecore.errors import InputError

if TYPE_CHECKING:
    import torch


def device_of(name: str) -> "torch.device":
    """Return the device of a name: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".

    Raises `InputError` for another name and for a GPU that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N; got {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise InputError(f"--device {name} is not here: this machine has {count} CUDA devices; use --device cpu")
    return torch.device(name)
