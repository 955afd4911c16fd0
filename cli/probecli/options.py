"""The options that commands share, as decorators: those of every command, and those that choose corpus and codec."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_COMMON = (
    click.option("--seed", default=0, show_default=True, type=int, help="Seeds every use of chance."),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.",
    ),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        help="Write result.json, table.csv, figures/ and report.html here.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."),
    click.option("--quiet", is_flag=True, help="No progress and no log on stderr."),
)


_FRESH = click.option(
    "--fresh",
    is_flag=True,
    help="Compute anew, also where the same run was done before and its result lies in the cache.",
)


def common(command: F) -> F:
    """Add --seed --device --out --json --quiet; the command receives seed, device, out, as_json and quiet."""
    return _with(command, *_COMMON)


def keeping(command: F) -> F:
    """Add --fresh to the common options, for commands whose results are kept (`probecli.kept`)."""
    return _with(command, *_COMMON, _FRESH)


CORPUS_HELP = (
    "embedded (synthetic voices), librispeech:SUBSET (downloaded into the cache), a folder in LibriSpeech's layout, "
    "a folder of SPEAKER/... audio, or a CSV manifest (path, speaker, session, text)."
)
CODEC_HELP = (
    "embedded, qwen3-tts-12hz, mimi, encodec, dac, xcodec, a hub name, or a folder as save_pretrained writes it; "
    "mimi:8 takes the first 8 layers."
)

_CORPUS = click.option("--corpus", default="embedded", show_default=True, help=CORPUS_HELP)
_CODEC = click.option("--codec", default="embedded", show_default=True, help=CODEC_HELP)


def _drawn(
    speakers: int | None = None, clips: int | None = None, all_clips: str = "all"
) -> "tuple[Callable[[F], F], ...]":
    """Return --speakers and --clips with these defaults."""
    return (
        click.option(
            "--speakers",
            type=click.IntRange(min=2),
            default=speakers,
            show_default=speakers is not None,
            help="Draw this many speakers." if speakers else "Draw this many speakers (default: all).",
        ),
        click.option(
            "--clips",
            type=click.IntRange(min=1),
            default=clips,
            show_default=clips is not None,
            help="Draw this many clips of each speaker" + ("." if clips else f" (default: {all_clips})."),
        ),
    )


_WINDOW = click.option(
    "--window",
    "window_s",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds of each clip that are taken, so that all are of one length; shorter clips are left out and named.",
)
_LISTENERS = (
    click.option("--asr", help="Measure words with this speech recogniser (hub name or folder)."),
    click.option(
        "--speaker-model",
        help="Judge the voice with this model (hub name or folder), not with MFCC: an x-vector model such as "
        "microsoft/wavlm-base-plus-sv, or ECAPA as the speaker encoder of Qwen/Qwen3-TTS-12Hz-1.7B-Base.",
    ),
)
_PROBING = (
    click.option(
        "--split",
        type=click.Choice(["session", "utterance"]),
        default="session",
        show_default=True,
        help="What is new at test. 'utterance' lets a session stand on both sides: its accuracy leaks.",
    ),
    _WINDOW,
    click.option(
        "--permutations",
        "n_permutations",
        type=click.IntRange(min=0),
        default=999,
        show_default=True,
        help="Random re-assignments of sessions to speakers; all of them where they are few. 0: no p-value.",
    ),
    click.option(
        "--bootstrap",
        "n_bootstrap",
        type=click.IntRange(min=0),
        default=200,
        show_default=True,
        help="Resamples with refits behind each interval, where it needs them. 0: no interval.",
    ),
)


def recordings(command: F) -> F:
    """Add --corpus --speakers --clips; the command receives corpus, speakers and clips."""
    return _with(command, _CORPUS, *_drawn())


def speech(command: F) -> F:
    """Add --corpus --codec --speakers --clips; the command receives corpus, codec, speakers and clips."""
    return _with(command, _CORPUS, _CODEC, *_drawn())


def decoded_speech(speakers: int | None = None, clips: int | None = None, all_clips: str = "all") -> Callable[[F], F]:
    """Add what `speech` adds, with these defaults, and --window --asr --speaker-model.

    The command receives corpus, codec, speakers, clips, window_s, asr and speaker_model.
    """

    def add(command: F) -> F:
        return _with(command, _CORPUS, _CODEC, *_drawn(speakers, clips, all_clips), _WINDOW, *_LISTENERS)

    return add


def probing(command: F) -> F:
    """Add --split --window --permutations --bootstrap, received as split, window_s, n_permutations and n_bootstrap."""
    return _with(command, *_PROBING)


def _with(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command
