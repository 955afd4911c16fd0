"""The power of a speaker probe's design: how many studies of this size would find a speaker that is there.

Conventions. A study is simulated with the probe that analyses real data: clips (speaker, session) as they were drawn,
normal features of `WIDTH` dimensions in each of as many layers as the codec has, sessions that differ (sd .7 of a
clip's), and in one layer speakers that differ too. Accuracy is what a study of this design shows on average, so that a
"true accuracy" of .3 is one that the cross-validated accuracies of many such studies have as their mean. Power at a
true accuracy is interpolated between simulated effects, of which each gives a mean accuracy and a share of studies with
an adjusted p below .05 (max-T over all layers). Features of real codecs are not normal; the figure is a guide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probecore.errors import DesignError
from probecore.probes.layers import probe_layers
from probecore.provenance import digest_of_record
from probecore.seeds import generator
from probecore.store import ArrayCache
from probecore.validation import at_least, codes_of

KEY = 1  # raise when the same design would give other numbers
ACCURACIES = (0.2, 0.3, 0.5)
EFFECTS = (0.0, 0.25, 0.35, 0.45, 0.55, 0.7, 0.95)  # standard deviation of speakers, in units of a clip's
SESSION = 0.7
WIDTH = 32
STUDIES = 70
PERMUTATIONS = 199
LEVEL = 0.05


@dataclass(frozen=True)
class Power:
    """Mean accuracy and share of studies with an adjusted p below .05, by effect; the first effect is none.

    accuracy, share : (effects,). n_studies : of each effect.
    """

    accuracy: NDArray[np.float64]
    share: NDArray[np.float64]
    n_studies: int

    def at(self, accuracy: float) -> float | None:
        """Return the power at a true accuracy; None where no simulated effect reaches it."""
        known = np.maximum.accumulate(self.accuracy)
        if not known[0] <= accuracy <= known[-1]:
            return None
        return float(np.interp(accuracy, known, self.share))

    @property
    def error(self) -> float:
        """Largest standard error of a share."""
        return 0.5 / float(np.sqrt(self.n_studies))


def design_power(
    speakers: Sequence[str],
    sessions: Sequence[str],
    n_layers: int,
    *,
    n_studies: int = STUDIES,
    seed: int = 0,
    cache: ArrayCache | None = None,
) -> Power:
    """Return the power of clips with these speakers and sessions (one name per clip), kept in the cache.

    Raises `DesignError` where this design gives no p.
    """
    at_least(n_studies, 1, "n_studies")
    speaker = codes_of(speakers)[0]
    session = codes_of([f"{a}/{b}" for a, b in zip(speakers, sessions, strict=True)])[0]
    design = {"speaker": speaker.tolist(), "session": session.tolist(), "layers": n_layers, "studies": n_studies}
    fixed = [EFFECTS, SESSION, WIDTH, PERMUTATIONS]
    key = digest_of_record({"power": KEY, **design, "fixed": fixed, "seed": seed})
    known = cache.get(key) if cache is not None else None
    if known is None:
        found = np.array([_studies(speaker, session, n_layers, effect, n_studies, seed) for effect in EFFECTS])
        known = {"accuracy": found[:, 0], "share": found[:, 1]}
        if cache is not None:
            cache.put(key, known)
    return Power(np.asarray(known["accuracy"]), np.asarray(known["share"]), n_studies)


def _studies(
    speaker: NDArray[np.int64], session: NDArray[np.int64], n_layers: int, effect: float, n_studies: int, seed: int
) -> tuple[float, float]:
    """Return mean accuracy in the layer with the effect, and the share of studies that find it."""
    accuracies, found = np.zeros(n_studies), np.zeros(n_studies)
    for study in range(n_studies):
        rng = generator(seed, "power", study)
        features = rng.normal(size=(n_layers, len(speaker), WIDTH))
        features += SESSION * rng.normal(size=(n_layers, int(session.max()) + 1, WIDTH))[:, session]
        features[0] += effect * rng.normal(size=(int(speaker.max()) + 1, WIDTH))[speaker]
        row = probe_layers(
            features, speaker.astype(str), groups=session, units=session, n_permutations=PERMUTATIONS, n_bootstrap=0,
            seed=study,
        ).rows[0]  # fmt: skip
        if row["p_adjusted"] is None:
            raise DesignError(f"no power without a p: {row['p_note']}")
        accuracies[study], found[study] = row["accuracy"], row["p_adjusted"] <= LEVEL
    return float(accuracies.mean()), float(found.mean())
