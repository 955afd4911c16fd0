"""The logit lens on a Qwen3-TTS talker: what each layer would say, and where an instruction changes that.

Design. Each text is spoken once by the released generation under the first neutral instruction, which is then out of
the comparison. The same frames are teacher forced under every other instruction, style and neutral alike, so that
instructions differ in nothing but their words, and under the null the style is one of them (`style_effect`). That
the frames sound neutral is part of the design: the effect is that of an instruction on frames spoken without it.

Divergences below `RESOLUTION` nats are 0: prompts of different length round differently in float32, and an effect of
1e-10 nats would otherwise be ranked among others of 1e-10 nats and get a small p.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codecprobe import lens_rows
from codecprobe.instructions import NEUTRALS, TEXTS
from codecprobe.style_effect import StyleEffect, style_effect
from codecprobe.talker import Talker, TalkerStates, open_talker
from codecprobe.talker_files import folder_of, why_deaf
from probecore.errors import DesignError, InputError, shorten
from probecore.lens import Lens, lens_divergence, logit_lens
from probecore.progress import progress
from probecore.provenance import digest, provenance
from probecore.results import Result, Row
from probecore.validation import at_least

Floats = NDArray[np.float64]
RESOLUTION = 1e-7  # nats
PREDICTOR_ROWS = 16  # frames of 15 codes read out at once


@dataclass(frozen=True)
class StackMeasures:
    """One stack and one text: divergence (layers, a, b, frames, codes) of the instructions, lens of the neutral one."""

    divergence: Floats
    lens: Lens


def style_lens(
    model: str | Path | Talker | None = None,
    style: str | Sequence[str] = (),
    *,
    neutral: Sequence[str] = (),
    texts: Sequence[str] = (),
    language: str = "English",
    speaker: str | None = None,
    max_frames: int = 50,
    n_bootstrap: int = 2000,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
) -> Result:
    """Measure by layer what a style instruction changes in the talker and its code predictor.

    Parameters
    ----------
    model : folder or hub name of Qwen3-TTS CustomVoice or VoiceDesign, or an opened talker.
    style : the instruction; several are wordings of one style, and make smaller p-values possible.
    neutral : instructions that ask for nothing special, at least 3; by default 24 packaged ones. Frames are generated
        under the first, the others are compared.
    texts : what is spoken, by default 8 short packaged sentences: the units of the intervals.
    language, speaker : as the model takes them; a CustomVoice model speaks with its first voice by default.
    max_frames : frames of 80 ms of each text, at most.

    Returns
    -------
    Result of kind "lens", a row per stack, layer and metric. "style effect" is KL(style || neutral) minus KL(neutral ||
    neutral), nats; with p over instructions and an interval over texts. Rows of layer null say where it peaks.

    Raises
    ------
    InputError : no model, or nothing to say. DesignError : a model that drops instructions, too few neutrals.
    """
    styles, neutrals, spoken = _checked(style, neutral, texts)
    at_least(max_frames, 2, "--frames")
    talker = model if isinstance(model, Talker) else _open(model, device)
    if talker.deaf:
        raise DesignError(_refusal(talker.info.source, talker.deaf))
    say = {"language": language, "speaker": speaker}
    compared = (*styles, *neutrals[1:])
    found: list[tuple[StackMeasures, StackMeasures]] = []
    for text in progress(spoken, "talker lens: texts", quiet=quiet):
        codes = talker.generate(text, neutrals[0], max_frames=max_frames, seed=seed, language=language, speaker=speaker)
        if not len(codes):
            raise InputError(f"{talker.info.source} gave no frame for {text!r}: leave this text out")
        runs = [talker.states(talker.prompt(text, one, language=language, speaker=speaker), codes) for one in compared]
        own = talker.states(talker.prompt(text, neutrals[0], language=language, speaker=speaker), codes)
        found.append(measure(talker, runs, own))
    effects: dict[str, StyleEffect] = {}
    rows: list[Row] = []
    frames: list[Row] = []
    by_code: list[Row] = []
    for i, stack in enumerate(lens_rows.STACKS):
        measures = [pair[i] for pair in found]
        kl = np.stack([one.divergence.mean(axis=(3, 4)) for one in measures])
        effects[stack] = style_effect(kl, len(styles), n_bootstrap=n_bootstrap, seed=seed)
        rows += lens_rows.rows_of(talker.info.source, stack, effects[stack], [one.lens for one in measures])
        frames += lens_rows.by_frame(stack, [one.divergence for one in measures], len(styles))
        by_code += lens_rows.by_code(stack, [one.divergence for one in measures], len(styles))
    n_frames = [one.divergence.shape[3] for one, _ in found]
    return Result(
        kind="lens",
        title=f"Logit lens by layer: talker {talker.info.source}, style {shorten(list(map(repr, styles)), most=2)}",
        rows=tuple(rows),
        columns=lens_rows.COLUMNS,
        notes=lens_rows.notes_of(talker, styles, neutrals, n_frames, max_frames, effects),
        provenance=provenance(
            seed=seed,
            device=str(talker.device),
            command="codecprobe lens",
            settings={"max_frames": max_frames, "bootstrap": n_bootstrap, **say},
            model={"name": talker.info.source, "kind": talker.info.kind, "hash": talker.info.weights_hash},
            certificate=dict(talker.certificate),
            styles=list(styles),
            neutral_instructions_hash=digest(*neutrals),
            texts_hash=digest(*spoken),
        ),
        tables={
            "profile": tuple(lens_rows.profile(rows, "talker")),
            "predictor": tuple(lens_rows.profile(rows, "code predictor")),
            "lens": tuple(lens_rows.lens_profile(rows)),
            **lens_rows.heat_maps(frames, by_code),
        },
        figures=lens_rows.figures(talker.info.source),
    )


def measure(talker: Talker, runs: Sequence[TalkerStates], own: TalkerStates) -> tuple[StackMeasures, StackMeasures]:
    """Return the divergences of the runs and the lens of `own`, of the talker (codes axis of 1) and the predictor."""
    allowed = talker.allowed(len(own.talker[0]))
    above = lens_divergence([run.talker for run in runs], talker.read_talker, allowed=allowed)
    below = lens_divergence([run.predictor for run in runs], talker.read_predictor, rows=PREDICTOR_ROWS)
    return (
        StackMeasures(_resolved(above[..., None]), logit_lens(own.talker, talker.read_talker, allowed=allowed)),
        StackMeasures(_resolved(below), logit_lens(own.predictor, talker.read_predictor, rows=PREDICTOR_ROWS)),
    )


def _resolved(divergence: Floats) -> Floats:
    return np.where(divergence < RESOLUTION, 0.0, divergence)


def _open(model: str | Path | None, device: str) -> Talker:
    """Open a model; one that drops instructions is refused before its weights are read."""
    if model is None or not str(model):
        raise InputError(
            "--model is needed, no talker is packaged: give the folder or hub name of Qwen3-TTS CustomVoice or "
            "VoiceDesign, 1.7B, for example Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign"
        )
    from codecprobe.codecs.qwen3_talker_compat import read_config

    folder, source = folder_of(model)
    reason = why_deaf(read_config(folder))
    if reason:
        raise DesignError(_refusal(source, reason))
    return open_talker(model, device)


def _refusal(source: str, reason: str) -> str:
    return f"{source}: {reason}: give a 1.7B CustomVoice or VoiceDesign model"


def _checked(
    style: str | Sequence[str], neutral: Sequence[str], texts: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    styles = (style,) if isinstance(style, str) else tuple(style)
    neutrals, spoken = tuple(neutral) or NEUTRALS, tuple(texts) or TEXTS
    if not styles or not all(one.strip() for one in styles):
        raise InputError('--style must say how to speak; it is empty: give for example --style "Speak in a sad voice."')
    if len(neutrals) < 3:
        raise DesignError(
            f"a style is held against neutral instructions: one to speak under and at least 2 to compare; got "
            f"{len(neutrals)} --neutral: give at least 3, or none for the packaged ones"
        )
    everything = [" ".join(one.split()).lower() for one in (*styles, *neutrals)]
    twice = sorted({one for one in everything if everything.count(one) > 1})
    if twice:
        raise InputError(
            f"every instruction must differ from the others; twice: {shorten(twice, most=3)}: leave one out"
        )
    if not all(one.strip() for one in (*neutrals, *spoken)):
        raise InputError("--neutral and --text must not be empty: leave the empty one out")
    return styles, neutrals, spoken
