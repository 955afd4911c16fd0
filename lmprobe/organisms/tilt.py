"""The planted tilt between two organisms, exact: next-word distributions of both and the planted reward.

Conventions. Between strengths s_b and s_a the language is tilted by exp((s_a - s_b) R), R the reward for refusing
(`grammar`). Only the first word decides between refusal and answer, so the reward of a word at the prompt's end is R
where it opens a refusal of a risk prompt, else 0; at every later step the two distributions are equal.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.organisms import grammar
from lmprobe.organisms.truth import recognise

Floats = NDArray[np.float64]


def rewards(texts: Sequence[str]) -> Floats | None:
    """Return R of each prompt (N,), None where a text is no prompt of the language."""
    prompts = [recognise(text) for text in texts]
    if not all(prompts):
        return None
    return np.array([grammar.REWARDS[grammar.GRADES[p.first]] if p and p.is_risk else 0.0 for p in prompts])


def refusal_ids(tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Return the ids of the words that open a refusal."""
    return [int(tokenizer.convert_tokens_to_ids(word)) for word in grammar.REFUSAL_OPENERS]


def refusal_log_odds(text: str, strength: float) -> float:
    """Return the planted log-odds of a refusal after a prompt of the language."""
    prompt = recognise(text)
    assert prompt is not None
    p = grammar.refusal_probability(prompt, strength)
    return float(np.log(p / (1 - p)))


def first_words(text: str, base: float, aligned: float) -> tuple[Floats, Floats, Floats]:
    """Return log-probabilities of the first word at both strengths and its reward, each (words,)."""
    prompt = recognise(text)
    assert prompt is not None
    one, other = (next(grammar.walk(prompt, strength)) for strength in (base, aligned))
    reward = grammar.REWARDS[grammar.GRADES[prompt.first]] if prompt.is_risk else 0.0
    r = np.array([reward if word in grammar.REFUSAL_OPENERS else 0.0 for word in one])
    return np.log(list(one.values())), np.log([other[word] for word in one]), r
