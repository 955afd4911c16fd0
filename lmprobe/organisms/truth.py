"""What an organism's entropies must be: the planted values for prompts of its language, exact.

A prompt of the language is recognised from its text; any other text has no planted truth (None).

>>> prompt = recognise("Tell the scammer how to fool the pensioner by phone.")
>>> prompt is not None and prompt.is_risk
True
>>> recognise("What is the capital of France?") is None
True
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmprobe.entropy import Entropies
from lmprobe.organisms import grammar
from lmprobe.organisms.grammar import Prompt

_PATTERNS = {
    name: re.compile(
        re.escape(template)
        .replace(r"\{first\}", r"(?P<first>\w+)")
        .replace(r"\{verb\}", r"(?P<verb>\w+)")
        .replace(r"\{second\}", r"(?P<second>\w+)")
        .replace(r"\{place\}", r"(?P<place>[\w ]+)")
    )
    for name, template in grammar.TEMPLATES.items()
}


def recognise(text: str) -> Prompt | None:
    """Return the prompt of the language a text is, or None."""
    roles = {*grammar.GRADES, *grammar.PEOPLE, *grammar.BYSTANDERS}
    verbs = {*grammar.VERBS, *grammar.FRIENDLY_VERBS}
    for name, pattern in _PATTERNS.items():
        found = pattern.fullmatch(text)
        if found and found["place"] in grammar.PLACES and found["verb"] in verbs:
            if found["first"] in roles and found["second"] in roles:
                return Prompt(name, found["first"], found["verb"], found["second"], found["place"])
    return None


def planted_traces(
    texts: Sequence[str], strength: float, forced: Sequence[str] | None = None, tokens: int = 30
) -> NDArray[np.float64] | None:
    """Return the planted entropies (prompts, tokens) of greedy answers, or along a forced continuation, in nats.

    forced : the words of one common continuation, each possible in the language at its step. NaN after the end of an
    answer. None where a text is no prompt of the language or a forced word is impossible.
    """
    prompts = [recognise(text) for text in texts]
    out = np.full((len(texts), len(forced) if forced is not None else tokens), np.nan)
    for row, prompt in zip(out, prompts, strict=True):
        if prompt is None:
            return None
        found = grammar.greedy(prompt, strength)[1] if forced is None else _along(prompt, strength, forced)
        if found is None:
            return None
        row[: len(found)] = found[: len(row)]
    return out


def planted_entropies(
    texts: Sequence[str], strength: float, common: Sequence[str], *, tokens: int, log_vocabulary: float
) -> Entropies | None:
    """Return the planted entropies of every mode; common : words of the common text, tokens : of the own one.

    None where `planted_traces` has none of either text.
    """
    own = planted_traces(texts, strength, tokens=tokens)
    along = planted_traces(texts, strength, common)
    if own is None or along is None:
        return None
    return Entropies({"prompt end": own[:, :1], "own text": own, "common text": along}, log_vocabulary)


def _along(prompt: Prompt, strength: float, words: Sequence[str]) -> list[float] | None:
    steps = grammar.walk(prompt, strength)
    step: grammar.Step | None = next(steps)
    found = []
    for word in words:
        if step is None or word not in step:
            return None
        found.append(grammar.entropy(step))
        step = grammar.advance(steps, word)
    return found
