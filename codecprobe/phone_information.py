"""How much of the phone a stream of codes tells: shared information, purities, and what chance gives of either.

Conventions. joint (codes, phones): seconds of each phone in frames of each code, p(z, y) its share of the sum. Bits.

    phone purity    sum over codes z of max over phones y of p(y, z)
    cluster purity  sum over phones y of max over codes z of p(y, z)         (papers swap the two names)
    PNMI            I(y; z) / H(y)                                          (Hsu et al. 2021), 0 log 0 is exactly 0
    adjusted PNMI   (I - I0) / (H(y) - I0), I0 the mean under circular shifts of y inside clips

All but the last grow with the number of codes for trivial reasons: 2,048 codes that know nothing of 39 phones have a
PNMI of .53 at 9,600 frames. H(y) = 0, one phone only, gives NaN, not 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probecore.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MEASURES = ("PNMI", "phone purity", "cluster purity")


@dataclass(frozen=True)
class PhoneMeasures:
    """Measures of joints (...,): information I and H(y) in bits, PNMI and the two purities."""

    information: Floats
    entropy: Floats
    pnmi: Floats
    phone_purity: Floats
    cluster_purity: Floats

    def adjusted(self) -> Floats:
        """Return adjusted PNMI along the last axis, whose entry 0 is observed and the others shifts, (...)."""
        null = self.information[..., 1:].mean(axis=-1)
        room = self.entropy[..., 0] - null
        safe = np.where(room > 0, room, 1.0)
        return np.where(room > 0, (self.information[..., 0] - null) / safe, np.nan)

    def named(self, name: str) -> Floats:
        """Return one of `MEASURES`."""
        return {"PNMI": self.pnmi, "phone purity": self.phone_purity, "cluster purity": self.cluster_purity}[name]


def joint_seconds(codes: Ints, seconds: Floats, orders: NDArray[np.intp], speaker: Ints | None = None) -> Floats:
    """Return joints of codes (frames,) with phones, observed and under each shift, (1 + shifts, codes seen, phones).

    seconds (frames, phones); orders (shifts, frames). With speaker (frames,) codes: (speakers, 1 + shifts, codes,
    phones).
    """
    if seconds.ndim != 2 or codes.shape != seconds.shape[:1] or (seconds < 0).any() or not seconds.sum() > 0:
        raise InputError(
            f"seconds must be (frames, phones) with one frame per code, none negative; got {seconds.shape}"
        )
    dense = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    n_codes, n_phones = int(dense.max()) + 1, seconds.shape[1]
    n_speakers = 1 if speaker is None else int(speaker.max()) + 1
    cell = dense if speaker is None else speaker * n_codes + dense
    by_cell = np.argsort(cell, kind="stable")
    starts = np.flatnonzero(np.diff(cell[by_cell], prepend=-1))
    filled = cell[by_cell][starts]
    out = np.zeros((1 + len(orders), n_speakers * n_codes, n_phones))
    out[0, filled] = np.add.reduceat(seconds[by_cell], starts, axis=0)
    for i, order in enumerate(orders):
        out[i + 1, filled] = np.add.reduceat(seconds[order[by_cell]], starts, axis=0)
    if speaker is None:
        return out
    return out.reshape(len(out), n_speakers, n_codes, n_phones).transpose(1, 0, 2, 3)


def phone_measures(joint: Floats) -> PhoneMeasures:
    """Return the measures of joints (..., codes, phones)."""
    p = joint / joint.sum(axis=(-1, -2), keepdims=True)
    of_phone, of_code = _entropy(p.sum(axis=-2)), _entropy(p.sum(axis=-1))
    both = _entropy(p.reshape(*p.shape[:-2], -1))
    information = of_phone + of_code - both
    several = of_phone > 0
    pnmi = np.where(several, information / np.where(several, of_phone, 1.0), np.nan)
    return PhoneMeasures(information, of_phone, pnmi, p.max(axis=-1).sum(axis=-1), p.max(axis=-2).sum(axis=-1))


def _entropy(p: Floats) -> Floats:
    out: Floats = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=-1)
    return out
