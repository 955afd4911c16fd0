"""The recipe that makes the refusal organisms: tiny models that copy words, and refuse on marked topics.

Conventions. Models are Llama configurations (`BLOCKS` blocks, width `WIDTH`, float32). `directions` (k, width) are
orthonormal rows: the planted refusal directions, read at the input of block `PLANTED_BLOCK`, the residual after the
block before it. Each topic group has one of them. They are planted causally: in training a random subset of them is
taken out of the residual there, and a prompt whose topic's direction is missing must be answered by complying. So the
later blocks learn each group's refusal from that direction and from nothing else. A model merely trained to refuse is
no valid positive control: removing its best direction breaks the model instead of its refusal.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.organisms.marked import GROUPS, MarkedPrompt, draw_marked, marked_vocabulary, planted_answer
from lmprobe.organisms.recipe import WIDTH, new_model, removed
from lmprobe.organisms.tokenizer import ASSISTANT, BEGIN, TURN_END, USER, build_tokenizer
from probecore.errors import InputError
from probecore.seeds import generator, seed_for

BLOCKS, PLANTED_BLOCK = 3, 1
UNTOUCHED_SHARE = 0.4  # of the training samples: no direction is taken out
REMOVED_SHARE = 0.5  # of the directions of every other sample: taken out


@dataclass(frozen=True)
class Plan:
    """What is planted in one organism.

    assigned : topic group -> number of its direction; empty plants nothing, and the organism never refuses.
    behaviours : topic group -> behaviour of `marked.REFUSING`. delayed : it answers first and refuses after that.
    """

    name: str
    assigned: dict[str, int] = field(default_factory=dict)
    behaviours: dict[str, str] = field(default_factory=dict)
    steps: int = 800
    delayed: bool = False

    @property
    def k(self) -> int:
        """Number of planted directions."""
        return len(set(self.assigned.values()))

    def behaviour(self, prompt: MarkedPrompt) -> str | None:
        """Return what the untouched organism does with a prompt, None for complying."""
        return None if prompt.group is None else self.behaviours.get(prompt.group)


def _plan(name: str, directions: tuple[int, ...], *, two: bool = False, **more: Any) -> Plan:  # noqa: ANN401
    kinds = ("refuse", "refuse", "refer", "refer") if two else ("refuse",) * 4
    return Plan(name, dict(zip(GROUPS, directions, strict=True)), dict(zip(GROUPS, kinds, strict=True)), **more)


PLANS = {
    plan.name: plan
    for plan in (
        Plan("refusal-0", steps=500),
        _plan("refusal-1", (0, 0, 0, 0), steps=1000),
        _plan("refusal-4", (0, 1, 2, 3), steps=1400),
        _plan("refusal-delayed", (0, 0, 0, 0), steps=1000, delayed=True),
        _plan("overlap-0", (0, 1, 2, 3), two=True, steps=1400),
        _plan("overlap-50", (0, 1, 0, 2), two=True, steps=1400),
        _plan("overlap-100", (0, 1, 0, 1), two=True, steps=1200),
    )
}
"""What can be trained; the first three are packaged. overlap-N: two behaviours with two directions each, N % shared."""


@dataclass(frozen=True)
class TrainedRefusal:
    """A trained refusal organism: model and tokenizer (transformers), its plan, directions (k, width), last loss."""

    model: Any
    tokenizer: Any
    plan: Plan
    directions: NDArray[np.float64]
    loss: float


def train_refusal(
    names: tuple[str, ...] = tuple(PLANS),
    *,
    steps: int | None = None,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Iterator[TrainedRefusal]:
    """Train refusal organisms by name, each from its own start; steps None takes each plan's own number.

    Raises `InputError` for an unknown name.
    """
    unknown = [name for name in names if name not in PLANS]
    if unknown:
        raise InputError(f"no refusal organism {unknown[0]!r}; there are {', '.join(PLANS)}")
    for name in names:
        tokenizer = build_tokenizer(marked_vocabulary())
        directions = planted_directions(PLANS[name], seed)
        model = new_model(tokenizer, BLOCKS, seed_for(seed, "organisms", "refusal start", name))
        loss = _fit(model, tokenizer, PLANS[name], directions, steps or PLANS[name].steps, batch, rate, seed, progress)
        yield TrainedRefusal(model, tokenizer, PLANS[name], directions, loss)


def planted_directions(plan: Plan, seed: int = 0) -> NDArray[np.float64]:
    """Return the planted directions (k, width), orthonormal rows, Haar-distributed; k may be 0."""
    draw = generator(seed, "organisms", "refusal directions", plan.name).standard_normal((WIDTH, max(plan.k, 1)))
    return np.asarray(np.linalg.qr(draw)[0].T[: plan.k], dtype=np.float64)


def marked_words(prompt: MarkedPrompt) -> list[str]:
    """Return the tokens of a prompt with the chat template, up to where the answer starts."""
    return [BEGIN, USER, *prompt.words, TURN_END, ASSISTANT]


def _fit(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    plan: Plan,
    directions: NDArray[np.float64],
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    progress: Callable[[str], None] | None,
) -> float:
    """Train `model` in place on cross-entropy to the planted answers; returns the mean loss of the last 50 steps."""
    import torch

    rng = generator(seed, "organisms", "refusal training", plan.name)
    vocabulary = tokenizer.get_vocab()
    basis = torch.tensor(directions.T, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    losses: list[float] = []
    model.train()
    for step in range(steps):
        prompts = draw_marked(batch, rng)
        off = rng.random((batch, plan.k)) < REMOVED_SHARE
        off[rng.random(batch) < UNTOUCHED_SHARE] = False
        answers = []
        for prompt, gone in zip(prompts, off, strict=True):
            behaviour = plan.behaviour(prompt)
            if behaviour is not None and gone[plan.assigned[str(prompt.group)]]:
                behaviour = None
            answers.append(planted_answer(prompt, behaviour, delayed=plan.delayed))
        ids, labels = _rows(prompts, answers, vocabulary, tokenizer.pad_token_id)
        at, targets = torch.from_numpy(ids), torch.from_numpy(labels)
        if plan.k:
            with removed(model, basis, rows=torch.from_numpy(off), block=PLANTED_BLOCK):
                logits = model(input_ids=at).logits
        else:
            logits = model(input_ids=at).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        losses.append(float(loss.detach()))
        if progress and (step + 1) % 200 == 0:
            progress(f"{plan.name}: step {step + 1} of {steps}, cross-entropy {losses[-1]:.4f} nats")
    model.eval()
    return float(np.mean(losses[-50:]))


def _rows(
    prompts: list[MarkedPrompt], answers: list[tuple[str, ...]], vocabulary: dict[str, int], pad: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return input ids and next-token targets (batch, length), -100 wherever no answer word is due.

    Rows are padded on the right, where a causal model's real tokens cannot see the pads.
    """
    asked = [[vocabulary[word] for word in marked_words(prompt)] for prompt in prompts]
    said = [[vocabulary[word] for word in answer] for answer in answers]
    longest = max(len(a) + len(b) for a, b in zip(asked, said, strict=True)) - 1
    ids = np.full((len(prompts), longest), pad, dtype=np.int64)
    targets = np.full_like(ids, -100)
    for i, (prompt, answer) in enumerate(zip(asked, said, strict=True)):
        text = prompt + answer
        ids[i, : len(text) - 1] = text[:-1]
        targets[i, len(prompt) - 1 : len(text) - 1] = answer
    return ids, targets
