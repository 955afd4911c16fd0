"""What lmprobe commands share: their options, how they answer, and the command line as a result shows it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from probecli.output import analysis_of, show

F = TypeVar("F", bound=Callable[..., Any])

MODEL_HELP = "A hub name or a folder as save_pretrained writes it; give it more than once to set models side by side."
PROMPTS_HELP = (
    "default (packaged), a CSV, TSV, JSONL or JSON file, or the name or folder of a data set (NAME or NAME:SPLIT); "
    "columns text, category and, where there is one, family. The files of XSTest, HarmBench, AdvBench, self-instruct "
    "and MT-Bench are read as they are. CATEGORY=SOURCE makes one category of a whole file; give it more than once."
)

TABLE_HELP = (
    "default (packaged), a CSV, TSV, JSONL or JSON file, or the name or folder of a data set (NAME or NAME:SPLIT), "
    "with a column text (or prompt, instruction, goal, messages); every other column can be a label. CATEGORY=SOURCE "
    "makes one category of a whole file; give it more than once."
)

# Single options that more than one command has; each is a decorator.
template = click.option(
    "--template",
    type=click.Choice(["auto", "chat", "raw"]),
    default="auto",
    show_default=True,
    help="How prompts are put to the model: auto takes the chat template where there is one.",
)
revision = click.option("--revision", help="Revision of hub models (branch, tag or commit).")
twins = click.option("--family", metavar="COLUMN", help="Column that names the family of a prompt, as a pair of twins.")
limit = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Draw this many prompts of each kind.")
openings = click.option(
    "--refusal-opening",
    "refusal_openings",
    multiple=True,
    metavar="TOKEN",
    help="A token that opens a refusal, as I or Sorry; without it they are derived from the extract split.",
)
cluster_bootstrap = click.option(
    "--bootstrap",
    "n_bootstrap",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Resamples of clusters of near-duplicates behind each interval. 0: no interval.",
)

_MEASURING = (
    click.option("--prompts", multiple=True, metavar="SOURCE", help=PROMPTS_HELP),
    click.option("--family", metavar="COLUMN", help="Column that names the family of a prompt, the cluster of tests."),
    revision,
    click.option(
        "--tokens",
        "max_new_tokens",
        type=click.IntRange(min=2),
        default=30,
        show_default=True,
        help="Most tokens to write.",
    ),
    template,
    click.option(
        "--permutations",
        "n_permutations",
        type=click.IntRange(min=0),
        default=999,
        show_default=True,
        help="Random exchanges of labels between prompts behind each p. 0: no p-value.",
    ),
    click.option(
        "--bootstrap",
        "n_bootstrap",
        type=click.IntRange(min=0),
        default=1000,
        show_default=True,
        help="Resamples of whole prompt families behind each interval. 0: no interval.",
    ),
)  # fmt: skip


def prompted(command: F) -> F:
    """Add --prompts --family --revision --tokens --template --permutations --bootstrap.

    The last but --template are received as max_new_tokens, n_permutations and n_bootstrap, the names of the functions.
    """
    for option in reversed(_MEASURING):
        command = option(command)
    return command


_TABLE = (
    click.option("--model", "models", multiple=True, metavar="NAME_OR_FOLDER", help=MODEL_HELP),
    click.option("--prompts", multiple=True, metavar="SOURCE", help=TABLE_HELP),
    click.option("--text", metavar="COLUMN", help="Column that holds the text of a prompt, where it has another name."),
    click.option("--family", metavar="COLUMN", help="Column that names the family of a prompt: what is new at test."),
    revision,
    click.option("--dtype", metavar="DTYPE", help="float32, bfloat16, float16 or float64 (default: the checkpoint's)."),
    click.option(
        "--device-map", metavar="MAP", help="Spread the weights over devices, as accelerate does: auto, balanced, ..."
    ),
    template,
)


def prompts_of_table(command: F) -> F:
    """Add --model --prompts --text --family --revision --dtype --device-map --template, for `answer_table`."""
    for option in reversed(_TABLE):
        command = option(command)
    return command


def answer_table(analysis: str, asked: dict[str, Any], *, hand_on_out: bool = False) -> None:
    """Run an analysis on prompts with all their columns; see `answer`.

    hand_on_out : the analysis writes into the folder of --out itself, beside the report.
    """
    from lmprobe.prompt_table import read_table

    out, as_json, sources, text, family = (asked.pop(n) for n in ("out", "as_json", "prompts", "text", "family"))
    table = read_table(sources, text=text, family=family)
    asked["models"] = asked["models"] or None
    if hand_on_out:
        asked["out"] = out
    result = analysis_of(analysis)(**asked, prompts=table, command=command_line())
    show(result, out=out, as_json=as_json, quiet=asked["quiet"])


def answer(analysis: str, asked: dict[str, Any]) -> None:
    """Run an analysis (MODULE:FUNCTION) on prompts and print and save its result as the common options say.

    asked : what a command with `prompted` and `common` received; all but its files and prompts is handed on by name.
    """
    from lmprobe.prompts import read_prompts

    out, as_json, sources, family = (asked.pop(name) for name in ("out", "as_json", "prompts", "family"))
    result = analysis_of(analysis)(**asked, prompts=read_prompts(sources, family=family), command=command_line())
    show(result, out=out, as_json=as_json, quiet=asked["quiet"])


def command_line() -> str:
    """Return the command line without the path of the program and without paths of this machine."""
    return " ".join(["lmprobe", *map(_shown, sys.argv[1:])])


def _shown(word: str) -> str:
    before, equals, path = word.rpartition("=")
    local = "/" in path and (Path(path).is_absolute() or path.startswith((".", "~")) or Path(path).exists())
    return f"{before}{equals}{Path(path).name}" if local else word
