"""Errors a user can act on.

* ProbeError
  + InputError          the data given cannot be analysed (also a ValueError)
  + DesignError         these data cannot answer this question
  + CertificateError    a model or codec is not what it must be for this analysis
  + MissingExtraError   an optional dependency is needed (also an ImportError)

Each message is one line: the rule, the value met, the next step.

>>> issubclass(InputError, ValueError) and issubclass(MissingExtraError, ImportError)
True
>>> print(shorten([f"clip{i}" for i in range(12)], most=3))
clip0, clip1, clip2 and 9 more
"""

from collections.abc import Sequence


class ProbeError(Exception):
    """Base of every error this toolkit raises on purpose."""


class InputError(ProbeError, ValueError):
    """The data given cannot be analysed as asked."""


class DesignError(ProbeError):
    """These data cannot answer this question."""


class CertificateError(ProbeError):
    """A model or codec failed a check made when it was opened."""


class MissingExtraError(ProbeError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the {extra!r} extra: pip install 'codecprobe[{extra}]'")
        self.feature, self.extra = feature, extra

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        """Survive the way back from another process, where an exception is made again from its arguments."""
        return type(self), (self.feature, self.extra)


def shorten(names: Sequence[object], *, most: int = 10) -> str:
    """Join names for a message and stop after `most` of them."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
