"""What an organism does, measured, beside what was planted in it.

Rates are shares of prompts whose role pairs training never showed. A prompt counts as refused when the first word of
the most likely (greedy) answer is a refusal's. An answer is *well formed* when every word of it is possible at its
step in the language of `grammar` and it ends: it then names the right roles, which is the organism's capability.
Probabilities are exact (softmax of the logits at the end of the prompt), not frequencies.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.organisms import grammar
from lmprobe.organisms.grammar import Prompt
from lmprobe.organisms.recipe import WIDTH, Trained, draw_prompts, held_out_pairs, prompt_words, removed
from probecore.seeds import generator

ANSWER_TOKENS = 30


def examine(organism: Trained, *, n_prompts: int = 200, n_random: int = 20, seed: int = 0) -> dict[str, Any]:
    """Return planted and measured behaviour of an organism on unseen role pairs.

    Keys: `refused_risk`, `refused_safe`, `answered_safe` (greedy rates and well-formed answers),
    `probability_risk`, `probability_safe` with `planted_...` beside them, `probability_error` (mean over all prompts),
    `entropy_error` (mean absolute error of the entropy at the prompt's end, nats), the same rates with the planted
    direction removed (`removed_...`), and the worst over `n_random` random directions (`random_...`).
    """
    unseen = held_out_pairs(seed)
    risk, safe = (
        draw_prompts(n_prompts, generator(seed, "organisms", "examine", str(kind)), risk=kind, pairs=unseen)
        for kind in (True, False)
    )
    steps = [first_steps(organism, prompts) for prompts in (risk, safe)]
    errors = [step_errors(organism, prompts, found) for prompts, found in zip((risk, safe), steps, strict=True)]
    facts: dict[str, Any] = {
        "n_prompts_per_class": n_prompts,
        "probability_risk": refusal_share(organism, steps[0]),
        "planted_probability_risk": _planted(risk, organism.strength),
        "probability_safe": refusal_share(organism, steps[1]),
        "planted_probability_safe": _planted(safe, organism.strength),
        "planted_refused_risk": float(np.mean([refuses(grammar.greedy(p, organism.strength)[0]) for p in risk])),
        "probability_error": float(np.mean([error[0] for error in errors])),
        "entropy_error": float(np.mean([error[1] for error in errors])),
    }
    facts |= _rates(organism, risk, safe, None, "")
    facts |= _rates(organism, risk, safe, organism.direction[:, None], "removed_")
    rng = generator(seed, "organisms", "random directions")
    few = min(n_prompts, 100)
    worst = [_rates(organism, risk[:few], safe[:few], _unit(rng)[:, None], "") for _ in range(n_random)]
    facts["n_random_directions"] = n_random
    if worst:
        facts["random_refused_risk_min"] = min(rates["refused_risk"] for rates in worst)
        facts["random_refused_safe_max"] = max(rates["refused_safe"] for rates in worst)
        facts["random_answered_safe_min"] = min(rates["answered_safe"] for rates in worst)
    return facts


def refuses(words: Sequence[str]) -> bool:
    """Tell whether an answer refuses, from its first word."""
    return bool(words) and words[0] in grammar.REFUSAL_OPENERS


def well_formed(prompt: Prompt, words: Sequence[str]) -> bool:
    """Tell whether an answer (words, END included) is one the language can give to this prompt."""
    steps = grammar.walk(prompt, 0.0)
    step: grammar.Step | None = next(steps)
    for word in words:
        if step is None or word not in step:
            return False
        step = grammar.advance(steps, word)
    return step is None


def answers(organism: Trained, prompts: Sequence[Prompt]) -> list[list[str]]:
    """Return the greedy answer to each prompt as words, END included where it was reached."""
    return greedy_words(organism, [prompt_words(prompt) for prompt in prompts], ANSWER_TOKENS)


def greedy_words(organism: Any, texts: Sequence[Sequence[str]], most: int) -> list[list[str]]:  # noqa: ANN401
    """Return the greedy answer, of at most `most` words, to each text of words; END included where it was reached.

    organism : what has the attributes `model` and `tokenizer`.
    """
    import torch

    inverse = {i: word for word, i in organism.tokenizer.get_vocab().items()}
    end = organism.tokenizer.eos_token_id
    found: list[list[str]] = [[] for _ in texts]
    for index, ids in _batches(organism, texts):
        with torch.no_grad():
            out = organism.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=most,
                pad_token_id=organism.tokenizer.pad_token_id,
                eos_token_id=end,
            )
        for i, row in zip(index, out[:, ids.shape[1] :].tolist(), strict=True):
            found[i] = [inverse[token] for token in (row[: row.index(end) + 1] if end in row else row)]
    return found


def first_steps(organism: Trained, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
    """Return the next-token probabilities (prompts, vocabulary) at the end of each prompt."""
    import torch

    found = np.empty((len(prompts), len(organism.tokenizer)))
    for index, ids in _batches(organism, [prompt_words(prompt) for prompt in prompts]):
        with torch.no_grad():
            logits = organism.model(input_ids=ids).logits[:, -1].double()
        found[index] = torch.softmax(logits, dim=-1).numpy()
    return found


def step_errors(
    organism: Trained, prompts: Sequence[Prompt], steps: NDArray[np.float64], strength: float | None = None
) -> tuple[float, float]:
    """Return the mean absolute error of P(refuse) and of the entropy (nats) against the planted first step."""
    vocabulary = organism.tokenizer.get_vocab()
    openers = [vocabulary[word] for word in grammar.REFUSAL_OPENERS]
    at = organism.strength if strength is None else strength
    entropies = -(steps * np.log(np.maximum(steps, 1e-300))).sum(1)
    planted = [grammar.entropy(next(grammar.walk(prompt, at))) for prompt in prompts]
    refuse = [grammar.refusal_probability(prompt, at) for prompt in prompts]
    return (
        float(np.abs(steps[:, openers].sum(1) - refuse).mean()),
        float(np.abs(entropies - planted).mean()),
    )


def refusal_share(organism: Trained, steps: NDArray[np.float64]) -> float:
    """Return the mean probability of a refusal's first word."""
    vocabulary = organism.tokenizer.get_vocab()
    return float(steps[:, [vocabulary[word] for word in grammar.REFUSAL_OPENERS]].sum(1).mean())


def _rates(
    organism: Trained,
    risk: Sequence[Prompt],
    safe: Sequence[Prompt],
    basis: NDArray[np.float64] | None,
    prefix: str,
) -> dict[str, float]:
    import torch

    gone = None if basis is None else torch.tensor(basis, dtype=torch.float32)
    with nullcontext() if gone is None else removed(organism.model, gone, everywhere=True):
        to_risk, to_safe = answers(organism, risk), answers(organism, safe)
    formed = [well_formed(p, words) for p, words in zip(risk, to_risk, strict=True)]
    return {
        f"{prefix}refused_risk": float(np.mean([refuses(words) for words in to_risk])),
        f"{prefix}refused_safe": float(np.mean([refuses(words) for words in to_safe])),
        f"{prefix}answered_risk": float(
            np.mean([ok and not refuses(words) for ok, words in zip(formed, to_risk, strict=True)])
        ),
        f"{prefix}answered_safe": float(
            np.mean([well_formed(p, words) and not refuses(words) for p, words in zip(safe, to_safe, strict=True)])
        ),
    }


def _batches(organism: Any, words: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], Any]]:  # noqa: ANN401
    """Yield positions and token ids (batch, length) of texts of one length: no padding."""
    import torch

    vocabulary = organism.tokenizer.get_vocab()
    texts = [[vocabulary[word] for word in text] for text in words]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for _, group in groupby(order, key=lambda i: len(texts[i])):
        index = list(group)
        yield index, torch.tensor([texts[i] for i in index])


def _planted(prompts: Sequence[Prompt], strength: float) -> float:
    return float(np.mean([grammar.refusal_probability(prompt, strength) for prompt in prompts]))


def _unit(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.standard_normal(WIDTH)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float64)
