"""The parts of a reproduction: each runs one analysis on the same clips and turns it into the evidence of its claims.

Conventions. A part whose design is refused, or whose input was not given, has no evidence and says why.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codecprobe.claim_evidence import FIRST_LATER, ablation_evidence, lens_evidence, speaker_evidence, swap_evidence
from codecprobe.code_evidence import pace_evidence, usage_evidence
from codecprobe.codebook_counts import count_codes
from codecprobe.codecs.codec import Codec
from codecprobe.corpora.corpus import Corpus
from codecprobe.dynamics import code_timescales
from codecprobe.layer_ablation import ablate
from codecprobe.layer_sets import name_of
from codecprobe.pace import far_frames, measure_pace
from codecprobe.representation import cut_windows, represent
from codecprobe.speaker import Settings, probe_family, speaker_probe, testable
from codecprobe.tokenization import TokenizedCorpus
from codecprobe.usage import codebook_usage
from codecprobe.voice_activity import activity_masks
from probecore.claims import Part
from probecore.store import ArrayCache
from probecore.validation import codes_of

EDIT = "resample"  # frames of another speaker's clip: unlike a dropped layer, something the decoder knows
FAR_S = 1.0
NO_MODEL = "needs the talker: give --model"


@dataclass(frozen=True)
class Run:
    """What every part of one run shares; `root` is the folder of caches."""

    corpus: Corpus
    codec: Codec
    tokenized: TokenizedCorpus
    window_s: float
    n_permutations: int
    n_bootstrap: int
    seed: int
    device: str
    root: Path
    quiet: bool

    @property
    def later(self) -> tuple[int, ...]:
        """Layers from 3 on."""
        return tuple(range(FIRST_LATER, self.codec.info.n_layers))


def speaker_part(run: Run) -> Part:
    """Measure the speaker in every layer, and compare layers on the same resamples."""
    result = speaker_probe(
        run.corpus, run.codec, window_s=run.window_s, n_permutations=run.n_permutations, n_bootstrap=run.n_bootstrap,
        seed=run.seed, device=run.device, cache=run.root, quiet=run.quiet,
    )  # fmt: skip
    windows, _ = testable(cut_windows(run.tokenized, run.window_s), "session")
    settings = Settings("session", 0, run.n_bootstrap, run.seed, run.device)
    single, so_far = (
        probe_family(represent(windows, run.codec, kind), settings) for kind in ("embedding", "cumulative")
    )
    return Part(result, speaker_evidence(result, single, so_far))


def timescales_part(run: Run) -> Part:
    """Measure how long codes stay."""
    result = code_timescales(
        run.corpus, run.codec, far_s=FAR_S, seed=run.seed, device=run.device, cache=run.root, quiet=run.quiet
    )
    speaker, _ = codes_of([clip.speaker for clip in run.tokenized.clips])
    pace = measure_pace(run.tokenized.codes, _speech(run), speaker, far_frames(FAR_S, run.codec.info.frame_rate_hz))
    return Part(result, pace_evidence(pace))


def usage_part(run: Run) -> Part:
    """Measure how much of its codebooks the codec uses."""
    result = codebook_usage(run.corpus, run.codec, seed=run.seed, device=run.device, cache=run.root, quiet=run.quiet)
    return Part(result, usage_evidence(count_codes(run.tokenized, _speech(run), "speech")))


def ablation_part(run: Run, asr: str | None, speaker_model: str | None) -> Part:
    """Decode with layer 0, layers 1-2 and later layers of other speakers' clips."""
    result = ablate(
        run.corpus, run.codec, layers=_sets(run), kinds=(EDIT,), window_s=run.window_s, asr=asr,
        speaker_model=speaker_model, seed=run.seed, device=run.device, cache=run.root, quiet=run.quiet,
    )  # fmt: skip
    return Part(result, ablation_evidence(result.rows, EDIT, name_of(run.later) if run.later else ""))


def swap_part(run: Run, speaker_model: str | None) -> Part:
    """Swap layer 0, layers 1-2 and later layers between speakers."""
    result = ablate(
        run.corpus, run.codec, layers=_sets(run), swap=True, window_s=run.window_s, speaker_model=speaker_model,
        seed=run.seed, device=run.device, cache=run.root, quiet=run.quiet,
    )  # fmt: skip
    return Part(result, swap_evidence(result.rows, name_of(run.later) if run.later else ""))


def lens_part(run: Run, model: str | Path | None, style: str) -> Part:
    """Measure where a style instruction acts in the talker; nothing without a model."""
    if model is None:
        return Part(reason=NO_MODEL)
    from codecprobe.talker_lens import style_lens

    result = style_lens(model, style, seed=run.seed, device=run.device, quiet=run.quiet)
    layers = [row["layer"] for row in result.rows if row["stack"] == "talker" and row["layer"] is not None]
    return Part(result, lens_evidence(result.rows, max(layers)))


def _sets(run: Run) -> tuple[str, ...]:
    n = run.codec.info.n_layers
    groups = (range(1), range(1, min(FIRST_LATER, n)), range(FIRST_LATER, n))
    return tuple(name_of(tuple(group)) for group in groups if len(group))


def _speech(run: Run) -> tuple[NDArray[np.bool_], ...]:
    return activity_masks(run.tokenized, ArrayCache(run.root / "activity"), quiet=True)["speech"]
