"""Selectors: which real tokens of a text are captured, by name and never by an index into padding.

A selector is written as "WHICH SCOPE". WHICH is "last", "first", "all" (a state for each token), "mean", or "mean
without first" (the first token of a text is an attention sink that dominates a mean). SCOPE is

    (nothing)        the prompt, with its template
    generated        what the model writes after the prompt, up to and including its end token
    role:NAME        what the messages of that role say, without the template's own tokens around it
    regex:PATTERN    tokens that overlap a match of a regular expression in the text as the tokenizer is given it

WHICH may be left out: "last" for the prompt, "all" for the other scopes.

>>> selector("last"), selector("mean regex:kill|bomb")
(Selector(which='last', scope='prompt', argument=''), Selector(which='mean', scope='regex', argument='kill|bomb'))
>>> selector("role:user").per_token, str(selector("mean generated"))
(True, 'mean generated')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmprobe.models import LanguageModel, Prompt, Template
from probecore.errors import InputError, shorten

Chooser = Callable[[Sequence[int]], Sequence[int]]
WHICH = ("last", "first", "mean", "mean without first", "all")
SCOPES = ("prompt", "generated", "role", "regex")
Scope = Literal["prompt", "generated", "role", "regex"]
MARK = "\ue000{}\ue001"
"""Private characters stand for a message's text while the template's own text is measured."""


@dataclass(frozen=True)
class Selector:
    """Which tokens of which part of a text; made by `selector`."""

    which: str
    scope: Scope
    argument: str = ""

    @property
    def per_token(self) -> bool:
        """Tell whether a prompt gives one item per token instead of one item."""
        return self.which == "all"

    def __str__(self) -> str:
        scope = "" if self.scope == "prompt" else f"{self.scope}:{self.argument}" if self.argument else self.scope
        return f"{self.which} {scope}".strip()

    def of(self, positions: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        """Return those of the scope's positions that are meant (to be averaged, for a mean)."""
        if not len(positions):
            what = "holds no token" if self.scope == "prompt" else f"has no token of {self.scope} {self.argument!r}"
            raise InputError(
                f"a selector must find a token in every prompt; {name} {what}: leave it out, or choose another selector"
            )
        if self.which == "mean without first":
            if len(positions) < 2:
                raise InputError(f"'mean without first' needs at least 2 tokens; {name} has 1: take 'mean'")
            return positions[1:]
        return {"last": positions[-1:], "first": positions[:1]}.get(self.which, positions)


def selector(text: str) -> Selector:
    """Return the selector that a text names; raises `InputError` for one that is none."""
    found = re.fullmatch(
        r"\s*(?:(last|first|all|mean without first|mean)(?:\s+|$))?(?:(prompt|generated)|(role|regex):(.+))?\s*",
        text,
        re.DOTALL,
    )
    if found is None or not text.strip():
        raise InputError(
            f"at must be WHICH SCOPE, with {', '.join(WHICH)} and nothing, generated, role:NAME or regex:PATTERN "
            f"('last', 'mean', 'all generated', 'last role:user', 'mean regex:kill'); got {text!r}"
        )
    which, plain, kind, argument = found.groups()
    scope: Any = plain or kind or "prompt"
    if scope == "regex":
        try:
            re.compile(argument)
        except re.error as error:
            raise InputError(f"at must hold a regular expression; {argument!r} is none: {error}") from error
    argument = (argument or "").strip() if scope == "role" else argument or ""
    return Selector(which or ("last" if scope == "prompt" else "all"), scope, argument)


def positions(
    lm: LanguageModel,
    prompt: Prompt,
    row: Sequence[int],
    at: Selector | Chooser,
    name: str,
    *,
    system: str | None = None,
    template: Template = "auto",
) -> NDArray[np.int64]:
    """Return the positions in a prompt's row of token ids that a selector means, ascending.

    name : of the prompt, for messages. Raises `InputError` where there is none, or where the tokenizer cannot say where
    a token stands in the text.
    """
    if not isinstance(at, Selector):
        picks = np.asarray(list(at(row)), dtype=np.int64)
        if not len(picks) or picks.min() < 0 or picks.max() >= len(row):
            raise InputError(
                f"a selector must return at least 1 position in [0, {len(row)}) of {name}; got "
                f"{shorten(picks.tolist(), most=5) or 'none'}"
            )
        return picks
    if at.scope == "generated":
        raise InputError("generated tokens are no part of a prompt: give at='all generated' to capture, or generate")
    if at.scope == "prompt":
        return at.of(np.arange(len(row)), name)
    text, spans = token_spans(lm, prompt, row, system=system, template=template)
    if at.scope == "regex":
        wanted = [match.span() for match in re.finditer(at.argument, text)]
    else:
        wanted = [(start, end) for role, start, end in message_spans(lm, prompt, system, template)
                  if role == at.argument]  # fmt: skip
    return at.of(np.flatnonzero(_overlap(spans, wanted)), name)


def token_spans(
    lm: LanguageModel, prompt: Prompt, row: Sequence[int], *, system: str | None = None, template: Template = "auto"
) -> tuple[str, NDArray[np.int64]]:
    """Return the text of a prompt and (tokens, 2), where in it each token of its row begins and ends.

    Tokens that stand for no character (a begin token that the tokenizer adds) have an empty span. Raises `InputError`
    for rows of ids, and for tokenizers that keep no offsets.
    """
    if not isinstance(prompt, str) and not isinstance(prompt[0], dict):
        raise InputError("a role or a regex needs a prompt's text; got token ids: give texts or messages")
    text, templated = lm.rendered(prompt, system, template)
    if not getattr(lm.tokenizer, "is_fast", False):
        raise InputError(
            f"a role or a regex needs a tokenizer that keeps offsets; {type(lm.tokenizer).__name__} does not: load the "
            "fast tokenizer, or give a function from token ids to positions"
        )
    found = lm.tokenizer(text, add_special_tokens=not templated, return_offsets_mapping=True)
    doubled = len(found["input_ids"]) - len(row)  # begin tokens beyond the first, which `format` leaves out
    if doubled < 0 or list(found["input_ids"][doubled:]) != list(row):
        raise InputError("a prompt's row must be that of its text; this one is not: format it with the same template")
    spans = np.asarray(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return text, spans[doubled:]


def message_spans(
    lm: LanguageModel, prompt: Prompt, system: str | None = None, template: Template = "auto"
) -> list[tuple[str, int, int]]:
    """Return role, start and end of what each message says, in the text that is tokenized.

    The template is filled twice, once with marks in the place of the messages; what stands between the marks is the
    template's own, and with the messages put back it must be the text. Without a template the whole text is the user's.
    Raises `InputError` for a template that changes what a message says.
    """
    text, templated = lm.rendered(prompt, system, template)
    if not templated:
        return [("user", 0, len(text))]
    given: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    messages = [{"role": "system", "content": system}, *given] if system is not None else given
    marked = [{**message, "content": MARK.format(i)} for i, message in enumerate(messages)]
    frame, _ = lm.rendered(marked, None, "chat")
    cuts = [(frame.find(MARK.format(i)), len(MARK.format(i))) for i in range(len(messages))]
    starts = [start for start, _ in cuts]
    contents = [str(message["content"]) for message in messages]
    if min(starts) >= 0 and all(a < b for a, b in pairwise(starts)):
        for said in (contents, [content.strip() for content in contents]):
            place, at, spans = 0, 0, []
            pieces = []
            for message, content, (start, length) in zip(messages, said, cuts, strict=True):
                pieces += [frame[place:start], content]
                at += start - place
                spans.append((str(message["role"]), at, at + len(content)))
                at, place = at + len(content), start + length
            if "".join([*pieces, frame[place:]]) == text:
                return spans
    raise InputError(
        f"the chat template of {lm.name} must put messages as they are into the text; it changes them: select tokens "
        "with regex:PATTERN instead of role:NAME"
    )


def _overlap(spans: NDArray[np.int64], wanted: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Tell which spans (tokens, 2) share at least one character with a wanted range."""
    found = np.zeros(len(spans), dtype=bool)
    for start, end in wanted:
        found |= np.maximum(spans[:, 0], start) < np.minimum(spans[:, 1], end)
    return found
