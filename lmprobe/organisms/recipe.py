"""The recipe that makes the organisms: a base model of the little language, and aligned models tuned from it.

Conventions. Models are Llama configurations (`BLOCKS` blocks, width `WIDTH`, float32). `direction` is a unit vector
(width,): the planted refusal direction, read at the input of block `PLANTED_BLOCK`, which is the residual after block
PLANTED_BLOCK - 1. It is planted causally: in a random share of the training samples the residual's component along it
is removed there, and those samples must be answered as the base answers them. So the later blocks learn refusal from
this one direction and nothing else, and its removal must bring the base back.

Training minimises the cross-entropy to the exact next-word distributions of `grammar.walk`, not to sampled words.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmprobe.organisms import grammar
from lmprobe.organisms.grammar import Prompt
from lmprobe.organisms.tokenizer import ASSISTANT, BEGIN, TURN_END, USER, build_tokenizer
from probecore.seeds import generator, seed_for

WIDTH, BLOCKS, PLANTED_BLOCK = 64, 4, 2
STRENGTHS = (0.0, 0.25, 0.5, 1.0)
HELD_OUT_SHARE = 0.15  # of the pairs of roles: never seen in training, in either order
REMOVED_SHARE = 0.35  # of the samples: the planted direction is removed
RAW_SHARE = 0.15  # of the samples: without chat template


@dataclass(frozen=True)
class Schedule:
    """How long to train: optimiser steps of the base and of each aligned model, samples a step."""

    base_steps: int = 1500
    tune_steps: int = 1200
    batch: int = 64
    rate: float = 3e-3


FULL = Schedule()
QUICK = Schedule(base_steps=40, tune_steps=20, batch=16)


@dataclass(frozen=True)
class Trained:
    """A trained organism: its model and tokenizer (transformers), its strength and its planted direction (width,)."""

    model: Any
    tokenizer: Any
    strength: float
    direction: NDArray[np.float64]


def train(
    strengths: tuple[float, ...] = STRENGTHS,
    *,
    schedule: Schedule = FULL,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Trained]:
    """Train the base, then tune one copy of it for each strength; yields them in the order of `strengths`.

    A strength of 0 yields the base itself.
    """
    tokenizer = build_tokenizer()
    direction = planted_direction(seed)
    base = new_model(tokenizer, BLOCKS, seed_for(seed, "organisms", "start"))
    _fit(base, tokenizer, direction, 0.0, schedule.base_steps, schedule, seed, progress)
    for strength in strengths:
        model = base
        if strength:
            model = copy.deepcopy(base)
            _fit(model, tokenizer, direction, strength, schedule.tune_steps, schedule, seed, progress)
        yield Trained(model, tokenizer, strength, direction)


def planted_direction(seed: int = 0) -> NDArray[np.float64]:
    """Return the unit vector (width,) that carries refusal."""
    vector = generator(seed, "organisms", "direction").standard_normal(WIDTH)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float64)


def held_out_pairs(seed: int = 0) -> set[frozenset[str]]:
    """Return the pairs (offender, ordinary person) that training never shows, in either order.

    They hold every pair of the packaged prompts, so that these are unseen as well.
    """
    from lmprobe.prompts import load_prompts

    people, offenders = set(grammar.PEOPLE), set(grammar.GRADES)
    pairs = {frozenset((a, b)) for a in offenders for b in people}
    rng = generator(seed, "organisms", "held out")
    kept = sorted(pairs, key=sorted)
    chosen = rng.permutation(len(kept))[: round(HELD_OUT_SHARE * len(kept))]
    packaged = (frozenset(text.rstrip(".?").split()) for text in load_prompts().texts)
    return {kept[i] for i in chosen} | {pair for words in packaged for pair in [words & (people | offenders)] if pair}


def draw_prompts(
    n: int,
    rng: np.random.Generator,
    *,
    risk: bool | None = None,
    pairs: set[frozenset[str]] | None = None,
    without: frozenset[frozenset[str]] | set[frozenset[str]] = frozenset(),
) -> list[Prompt]:
    """Draw prompts of the language.

    risk : True or False draws one class of prompts that hold an offender; None draws half of them risk prompts, and
        among the others also prompts without an offender.
    pairs : only these pairs of roles. without : none of these.
    """
    found: list[Prompt] = []
    offenders, people = list(grammar.GRADES), grammar.PEOPLE
    while len(found) < n:
        is_risk = bool(rng.random() < 0.5) if risk is None else risk
        friendly = risk is None and not is_risk and rng.random() < 0.3
        if friendly:
            first, second = rng.choice(grammar.BYSTANDERS + people, 2, replace=False).tolist()
        else:
            offender, other = str(rng.choice(offenders)), str(rng.choice(people))
            first, second = (offender, other) if is_risk else (other, offender)
        verb = str(rng.choice(grammar.FRIENDLY_VERBS if friendly else grammar.VERBS))
        template, place = str(rng.choice(list(grammar.TEMPLATES))), str(rng.choice(grammar.PLACES))
        prompt = Prompt(template, first, verb, second, place)
        if prompt.pair not in without and (pairs is None or prompt.pair in pairs):
            found.append(prompt)
    return found


def prompt_words(prompt: Prompt, *, raw: bool = False) -> list[str]:
    """Return the tokens of a prompt, with the chat template or raw, up to where the answer starts."""
    words = [*prompt.text[:-1].split(), prompt.text[-1]]
    return [BEGIN, *words] if raw else [BEGIN, USER, *words, TURN_END, ASSISTANT]


@contextmanager
def removed(
    model: Any,  # noqa: ANN401
    basis: Any,  # noqa: ANN401
    *,
    rows: Any = None,  # noqa: ANN401
    everywhere: bool = False,
    block: int = PLANTED_BLOCK,
) -> Iterator[None]:
    """Remove span(basis), basis (width, k) orthonormal, from the residual while the context is open.

    rows : boolean, the samples it is removed from, (batch,), or which of the k directions from which sample,
        (batch, k); None removes it from all.
    everywhere : at the input of every block and from every attention and MLP output; else at the input of `block`.
    """

    def without(hidden: Any) -> Any:  # noqa: ANN401
        if rows is not None and rows.ndim == 2:
            return hidden - ((hidden @ basis) * rows[:, None, :].to(hidden.dtype)) @ basis.T
        part = (hidden @ basis) @ basis.T
        return hidden - (part if rows is None else part * rows[:, None, None].to(part.dtype))

    def before(_: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        if args:
            return (without(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": without(kwargs["hidden_states"])}

    def after(_: Any, __: Any, output: Any) -> Any:  # noqa: ANN401
        return (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)

    blocks = model.model.layers
    hooks = [b.register_forward_pre_hook(before, with_kwargs=True) for b in (blocks if everywhere else [])]
    if everywhere:
        hooks += [part.register_forward_hook(after) for b in blocks for part in (b.self_attn, b.mlp)]
    else:
        hooks.append(blocks[block].register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def new_model(tokenizer: Any, blocks: int, seed: int) -> Any:  # noqa: ANN401
    """Return an untrained Llama model (float32) of `blocks` blocks and width `WIDTH`; torch's own seed is put back."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _fit(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    direction: NDArray[np.float64],
    strength: float,
    steps: int,
    schedule: Schedule,
    seed: int,
    progress: Callable[[str], None] | None,
) -> None:
    """Train `model` in place towards the language tilted by `strength`."""
    import torch

    name = f"strength {strength:g}"
    rng = generator(seed, "organisms", name)
    basis = torch.tensor(direction[:, None], dtype=torch.float32)
    unseen = held_out_pairs(seed)
    rate = schedule.rate if not strength else schedule.rate / 3
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    rows = _TargetRows(tokenizer)
    model.train()
    for step in range(steps):
        prompts = draw_prompts(schedule.batch, rng, without=unseen)
        off = rng.random(schedule.batch) < REMOVED_SHARE
        ids, targets, places = rows.batch(prompts, np.where(off, 0.0, strength), rng)
        with removed(model, basis, rows=torch.from_numpy(off)):
            logits = model(input_ids=torch.from_numpy(ids)).logits
        at = torch.from_numpy(places)
        chosen = torch.log_softmax(logits[at[:, 0], at[:, 1]], dim=-1)
        loss = -(torch.from_numpy(targets) * chosen).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        if progress and (step + 1) % 250 == 0:
            progress(f"{name}: step {step + 1} of {steps}, cross-entropy {loss.item():.4f} nats")
    model.eval()


class _TargetRows:
    """Turns prompts into token ids and the exact next-token distribution at every answer position."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.pad = tokenizer.pad_token_id

    def batch(
        self, prompts: list[Prompt], strengths: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Return ids (batch, length), targets (steps, vocabulary) and where they belong (steps, 2: sample, position).

        Half of the first words are taken evenly instead of by their probability, so that every branch is learnt.
        """
        texts: list[list[int]] = []
        steps: list[grammar.Step] = []
        places: list[tuple[int, int]] = []
        for sample, (prompt, strength) in enumerate(zip(prompts, strengths.tolist(), strict=True)):
            text = [self.ids[word] for word in prompt_words(prompt, raw=bool(rng.random() < RAW_SHARE))]
            answer = grammar.walk(prompt, strength)
            step: grammar.Step | None = next(answer)
            even = rng.random() < 0.5
            while step is not None:
                steps.append(step)
                places.append((sample, len(text) - 1))
                words = list(step)
                draw = 0 if len(words) == 1 else int(rng.choice(len(words), p=None if even else list(step.values())))
                even = False
                text.append(self.ids[words[draw]])
                step = grammar.advance(answer, words[draw])
            texts.append(text[:-1])
        ids = np.full((len(texts), max(map(len, texts))), self.pad, dtype=np.int64)
        for sample, text in enumerate(texts):
            ids[sample, : len(text)] = text
        targets = np.zeros((len(steps), len(self.ids)), dtype=np.float32)
        for row, step in zip(targets, steps, strict=True):
            row[[self.ids[word] for word in step]] = list(step.values())
        return ids, targets, np.array(places, dtype=np.int64)
