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


def common(command: F) -> F:
    """Add --seed --device --out --json --quiet; the command receives seed, device, out, as_json and quiet."""
    return _with(command, *_COMMON)


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
_DRAWN = (
    click.option("--speakers", type=click.IntRange(min=2), help="Draw this many speakers (default: all)."),
    click.option("--clips", type=click.IntRange(min=1), help="Draw this many clips of each speaker (default: all)."),
)
_PROBING = (
    click.option(
        "--split",
        type=click.Choice(["session", "utterance"]),
        default="session",
        show_default=True,
        help="What is new at test. 'utterance' lets a session stand on both sides: its accuracy leaks.",
    ),
    click.option(
        "--window",
        "window_s",
        type=click.FloatRange(min=0, min_open=True),
        default=3.0,
        show_default=True,
        help="Seconds of each clip that are probed; shorter clips are left out and named.",
    ),
    click.option(
        "--permutations",
        type=click.IntRange(min=0),
        default=999,
        show_default=True,
        help="Random re-assignments of sessions to speakers; all of them where they are few. 0: no p-value.",
    ),
    click.option(
        "--bootstrap",
        type=click.IntRange(min=0),
        default=200,
        show_default=True,
        help="Resamples with refits behind each interval, where it needs them. 0: no interval.",
    ),
)


def recordings(command: F) -> F:
    """Add --corpus --speakers --clips; the command receives corpus, speakers and clips."""
    return _with(command, _CORPUS, *_DRAWN)


def speech(command: F) -> F:
    """Add --corpus --codec --speakers --clips; the command receives corpus, codec, speakers and clips."""
    return _with(command, _CORPUS, _CODEC, *_DRAWN)


def probing(command: F) -> F:
    """Add --split --window --permutations --bootstrap, received as split, window_s, permutations and bootstrap."""
    return _with(command, *_PROBING)


def _with(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command
