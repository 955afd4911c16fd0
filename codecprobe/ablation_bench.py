"""The bench on which clips are decoded without some layers and measured: an arm is a kind of edit and a set of layers.

Conventions. All clips are windows of one number of frames. Each clip belongs to one fold; the classifiers and the mean
terms used on it come from the other folds, so that they know neither the clip nor its session. Its partner is a clip
of another speaker in the same fold; its sibling is another clip of its own speaker, from another session where there is
one, and is judged by classifiers that do not know it. Every draw is named by seed, arm and clip: another set of arms
changes no number. What was measured is kept on disk, clip by clip and arm by arm.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from codecprobe.codecs.codec import Codec, Waveform
from codecprobe.latent_edits import SWAP, Contributions, contributions, edited, random_control
from codecprobe.layer_sets import LayerSet, name_of
from codecprobe.representation import Windows
from codecprobe.scorers import Heard, Listener, Recogniser, compare, fit_recogniser, measures
from codecprobe.swap_measures import SWAP_MEASURES, compare_pair
from probecore.errors import InputError
from probecore.progress import meter
from probecore.provenance import digest_of_record
from probecore.seeds import generator
from probecore.splits import Folds
from probecore.store import ArrayCache

Floats = NDArray[np.float64]
KEY = 1  # raise when the same arm would be measured by other numbers
UNABLATED, FLOOR, CEILING = "unablated", "another speaker", "same speaker"
AT_ONCE = 16  # references decoded before they are listened to


@dataclass(frozen=True)
class Arm:
    """A kind of edit, or one of the levels to compare with ("unablated", "another speaker", "same speaker")."""

    kind: str
    layers: LayerSet = ()

    @property
    def name(self) -> str:
        """The arm as cache and random draws know it."""
        return f"{self.kind} {name_of(self.layers)}"


LEVELS = (Arm(UNABLATED), Arm(FLOOR), Arm(CEILING))


class Bench:
    """Measures arms on windows; the results of `measure` are cached under `key`, which names all else they hang on.

    folds : test each window once.  key : hash of audio, codec and windows.
    """

    def __init__(
        self,
        windows: Windows,
        codec: Codec,
        listener: Listener,
        folds: Folds,
        *,
        seed: int,
        cache: ArrayCache,
        key: str,
    ) -> None:
        self.windows, self._codec, self._listener = windows, codec, listener
        self._fold = folds.fold_of(len(windows.clips))
        self._seed, self._cache = seed, cache
        self.speakers = np.array([clip.speaker for clip in windows.clips])
        self.partner = partners(self.speakers, self._fold, seed)
        self.sibling = siblings(self.speakers, np.array([clip.session for clip in windows.clips]))
        self.names = tuple(measure.name for measure in measures(codec.info.n_layers))
        self.swap_names = tuple(measure.name for measure in SWAP_MEASURES)
        self.not_finite: list[str] = []
        self._key = digest_of_record(
            {
                "key": KEY,
                "bench": key,
                "clips": [clip.clip_id for clip in windows.clips],
                "window_s": windows.window_s,
                "folds": self._fold.tolist(),
                "seed": seed,
                "listeners": listener.identity,
                "measures": [self.names, self.swap_names],
                "versions": [version(name) for name in ("numpy", "scipy", "librosa", "torch", "transformers")],
            }
        )
        self._contributions = lru_cache(maxsize=8)(partial(_contributions, codec, windows.codes))

    def measure(self, arms: Sequence[Arm], *, quiet: bool = True) -> dict[Arm, Floats]:
        """Return of each arm (2, clips, measures): measured under the edit, and under its random control.

        Measures are those of `names`, or of `swap_names` for swaps. NaN stands where a clip has no such measure, has
        no partner, or the arm has no control.
        """
        entries: list[dict[str, Floats]] = []
        with meter(len(self.windows.clips), "decoding without layers", quiet=quiet) as advance:
            for i in range(len(self.windows.clips)):
                entries.append(self._measured(i, arms))
                advance(1)
        lost = [
            f"{clip.clip_id} ({arm.name})"
            for clip, entry in zip(self.windows.clips, entries, strict=True)
            for arm in arms
            if entry[f"{arm.name} lost"].any()
        ]
        self.not_finite = lost
        return {arm: np.stack([entry[arm.name] for entry in entries], axis=1) for arm in arms}

    @cached_property
    def references(self) -> list[Heard]:
        """What is heard in the decode of all layers of each clip; raises `InputError` where it is not finite."""
        found: list[Heard] = []
        for first in range(0, len(self.windows.clips), AT_ONCE):
            some = range(first, min(first + AT_ONCE, len(self.windows.clips)))
            for i, heard in zip(some, self._listener.hear([self._decode(self._latent(i)) for i in some]), strict=True):
                if heard is None:
                    name = self.windows.clips[i].clip_id
                    raise InputError(f"{name}: the decode of all layers is not finite: check the codec's weights")
                found.append(heard)
        return found

    @cached_property
    def recognisers(self) -> tuple[Recogniser, ...]:
        """The classifiers of each fold, fitted on the references of all other folds."""
        made = []
        for fold in range(int(self._fold.max()) + 1):
            others = np.flatnonzero(self._fold != fold)
            made.append(fit_recogniser([self.windows.clips[i] for i in others], [self.references[i] for i in others]))
        return tuple(made)

    @cached_property
    def mean_terms(self) -> NDArray[np.float32]:
        """Mean term of each layer over the frames of the clips of all other folds, (folds, layers, dim)."""
        own = np.stack([self._contributions(i).terms.mean(axis=1, dtype=np.float64) for i in range(len(self._fold))])
        folds = range(int(self._fold.max()) + 1)
        return np.stack([own[self._fold != fold].mean(axis=0) for fold in folds]).astype(np.float32)

    def latents(self, i: int, arm: Arm) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the decoder's input of clip i under an arm, and under the arm's random control."""
        clip, partner = self._contributions(i), int(self.partner[i])
        name = (arm.name, self.windows.clips[i].clip_id)
        changed = edited(
            clip,
            arm.layers,
            arm.kind,
            rng=generator(self._seed, "ablation", *name),
            donor=self._contributions(partner) if partner >= 0 else None,
            mean=self.mean_terms[self._fold[i]] if arm.kind == "mean" else None,
        )
        return changed, random_control(clip.latent, changed, generator(self._seed, "ablation control", *name))

    def _measured(self, i: int, arms: Sequence[Arm]) -> dict[str, Floats]:
        """Return the clip's measures under each arm, (2, measures), from the cache as far as they are there."""
        key = f"{self._key} {self.windows.clips[i].clip_id}"
        entry = dict(self._cache.get(key) or {})
        missing = [arm for arm in arms if arm.name not in entry]
        if missing:
            for arm, values, lost in self._measure(i, missing):
                entry |= {arm.name: values, f"{arm.name} lost": np.array(lost)}
            self._cache.put(key, entry)
        return entry

    def _measure(self, i: int, arms: Iterable[Arm]) -> Iterator[tuple[Arm, Floats, bool]]:
        """Yield arm, measures (2, n), and whether a decode was not finite."""
        waiting: list[Arm] = []
        for arm in arms:
            n = len(self.swap_names if arm.kind == SWAP else self.names)
            if arm in LEVELS:
                other = {UNABLATED: i, FLOOR: int(self.partner[i]), CEILING: int(self.sibling[i])}[arm.kind]
                values = self._values(i, arm, self.references[other]) if other >= 0 else np.full(n, np.nan)
                yield arm, np.stack([values, np.full(n, np.nan)]), False
            elif arm.kind in (SWAP, "resample") and self.partner[i] < 0:
                yield arm, np.full((2, n), np.nan), False
            else:
                waiting.append(arm)
        waves = [self._decode(latent) for arm in waiting for latent in self.latents(i, arm)]
        heard = self._listener.hear(waves)
        for j, arm in enumerate(waiting):
            both = heard[2 * j : 2 * j + 2]
            yield arm, np.stack([self._values(i, arm, one) for one in both]), any(one is None for one in both)

    def _values(self, i: int, arm: Arm, heard: Heard | None) -> Floats:
        swap = arm.kind == SWAP
        names = self.swap_names if swap else self.names
        if heard is None:
            return np.full(len(names), np.nan)
        judged = int(self.sibling[i]) if arm.kind == CEILING else i
        clip, recogniser = self.windows.clips[i], self.recognisers[self._fold[judged]]
        found: Mapping[str, float]
        if swap:
            j = int(self.partner[i])
            found = compare_pair(clip, self.windows.clips[j], heard, self.references[i], self.references[j], recogniser)
        else:
            found = compare(clip, self.windows.codes[i], heard, self.references[i], recogniser)
        return np.array([found[name] for name in names], dtype=np.float64)

    def _latent(self, i: int) -> NDArray[np.float32]:
        return self._contributions(i).latent

    def _decode(self, latent: NDArray[np.float32]) -> Waveform:
        return self._codec.decode_latent(latent, len(latent) * self._codec.info.hop_samples)


def partners(speakers: NDArray[np.str_], fold: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return for each clip the index of a clip of another speaker in its fold, -1 where there is none.

    Inside a fold every clip is partner once at most: clips are laid out speaker by speaker in random order and turned
    by at least as many places as the speaker with most clips has. Where one speaker has more than half of the clips
    some have no partner.
    """
    found = np.full(len(speakers), -1, dtype=np.int64)
    for one in np.unique(fold):
        members = np.flatnonzero(fold == one)
        rng = generator(seed, "partners", int(one))
        names = rng.permutation(np.unique(speakers[members]))
        order = np.concatenate([rng.permutation(members[speakers[members] == name]) for name in names])
        most = max(int((speakers[members] == name).sum()) for name in names)
        if 2 * most <= len(order):
            turn = int(rng.integers(most, len(order) - most + 1))
        else:
            turn = most % len(order)
        others = np.roll(order, -turn)
        different = speakers[order] != speakers[others]
        found[order[different]] = others[different]
    return found


def siblings(speakers: NDArray[np.str_], sessions: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return for each clip another one of its speaker, the next of another session where there is one; -1 if none."""
    found = np.full(len(speakers), -1, dtype=np.int64)
    for i in range(len(speakers)):
        behind = (i + 1 + np.arange(len(speakers) - 1)) % len(speakers)
        own = behind[speakers[behind] == speakers[i]]
        elsewhere = own[sessions[own] != sessions[i]]
        if len(own):
            found[i] = elsewhere[0] if len(elsewhere) else own[0]
    return found


def _contributions(codec: Codec, codes: Sequence[NDArray[np.int64]], i: int) -> Contributions:
    return contributions(codec, codes[i])
