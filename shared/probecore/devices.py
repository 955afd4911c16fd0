"""Where things run: one rule from the name a user gives to a torch device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from probecore.errors import InputError

if TYPE_CHECKING:
    import torch


def device_of(name: str, *, mps: bool = False) -> "torch.device":
    """Return the device of a name: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".

    mps : whether the caller can also run on an Apple GPU, which has no float64; then "mps" is a name too.

    Raises `InputError` for another name and for a GPU that is not there.
    """
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = mps and torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if apple else "cpu")
    kind, _, number = name.partition(":")
    names = "auto, cpu, cuda, cuda:N or mps" if mps else "auto, cpu, cuda or cuda:N"
    known = name in ("cpu", "cuda") or (mps and name == "mps") or (kind == "cuda" and number.isdecimal())
    if not known:
        raise InputError(f"--device must be {names}; got {name!r}")
    if kind == "cuda" and int(number or 0) >= cuda:
        raise InputError(f"--device {name} is not there, this machine has {cuda} CUDA devices: use --device cpu")
    if kind == "mps" and not apple:
        raise InputError("--device mps is not there on this machine: use --device cpu")
    return torch.device(name)


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """Run torch on one thread inside, where `when` says so: tiny models lose more by waking others than they gain."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if when else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
