"""Generate: text, entropies and residual states of a continuation, in one pass with the key/value cache.

Conventions. N prompts, S steps. Step t is the choice of generated token t. `entropy[i, t]` (nats, float64) is that of
the raw next-token distribution from which token t was chosen: before temperature, penalties or any other processor.
`entropy[i, 0]` is therefore the entropy at the prompt's end. `states(layer)[i, t]` is the residual state AT generated
token t, the last one included (one more one-token step on the same cache). A row is valid up to and including its
first end token; everything after it is NaN.

Decoding is plain: greedy, or sampling at a temperature. What a checkpoint's own generation config asks for (sampling,
penalties, beams) is not applied and is listed in `info["not applied"]`. Prompts are padded on the left, positions
counted from the mask. The model's own `generate` feeds the model, so every cache transformers knows works; which token
is chosen is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lmprobe.capture import model_record, to_numpy
from lmprobe.inputs import Progress, length_batches, pad, run_batches
from lmprobe.models import LanguageModel, Prompt, Template
from lmprobe.taps import tapped
from probecore.activations import Activations, Label
from probecore.errors import InputError
from probecore.seeds import generator
from probecore.validation import at_least


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model wrote after N prompts in at most S steps, with D features per state.

    prompts : N rows of prompt token ids. tokens : N rows of generated ids, up to and including the first end token.
    finished : (N,) whether the row ended with an end token. lengths : (N,) valid steps.
    entropy, log_prob, top_prob : (N, S) float64, of the raw distribution in nats, of the chosen token in nats, and the
        probability of the most probable token; NaN after the end.
    prompt_end : layer -> (N, D) state at the last token of the prompt.
    steps : layer -> (N, S, D) state at each generated token; NaN after the end.
    """

    prompts: tuple[tuple[int, ...], ...] = field(repr=False)
    tokens: tuple[tuple[int, ...], ...] = field(repr=False)
    texts: tuple[str, ...]
    finished: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    entropy: NDArray[np.float64] = field(repr=False)
    log_prob: NDArray[np.float64] = field(repr=False)
    top_prob: NDArray[np.float64] = field(repr=False)
    prompt_end: Mapping[str, NDArray[Any]] = field(repr=False)
    steps: Mapping[str, NDArray[Any]] = field(repr=False)
    info: Mapping[str, Any] = field(repr=False)

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def mean_entropy(self) -> NDArray[np.float64]:
        """Return the mean entropy of each prompt's valid steps, (N,), in nats."""
        return np.asarray(np.nanmean(self.entropy, axis=1))

    def states(self, layer: str) -> NDArray[Any]:
        """Return the states at the generated tokens, (N, S, D), NaN after the end."""
        return self.steps[_kept(layer, self.steps)]

    def trajectory(self, prompt: int, layer: str) -> NDArray[Any]:
        """Return the states at one prompt's generated tokens, (valid steps, D)."""
        return np.asarray(self.states(layer)[prompt, : self.lengths[prompt]])

    def activations(
        self,
        groups: ArrayLike | None = None,
        labels: Mapping[str, Label] | None = None,
        names: Sequence[str] | None = None,
    ) -> Activations:
        """Return the states at the prompts' ends as `Activations`; groups default to every prompt its own."""
        if not self.prompt_end:
            raise InputError("no states of the prompts' ends were kept: generate with layers='all'")
        items = [f"prompt {i}" for i in range(self.n_prompts)] if names is None else list(names)
        info = {**self.info, "representation": "residual stream at last"}
        return Activations.from_arrays(
            dict(self.prompt_end), groups if groups is not None else items, labels or {}, items, info=info
        )


def generate(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 30,
    layers: str | Sequence[str | int] = "all",
    step_layers: str | Sequence[str | int] = (),
    forced: str | Sequence[int] | None = None,
    temperature: float | None = None,
    seed: int = 0,
    system: str | None = None,
    template: Template = "auto",
    batch_tokens: int = 4096,
    deterministic: bool = False,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Generation:
    """Continue prompts and return tokens, entropies and residual states.

    layers : whose states at the prompts' ends are kept ("all", names, block numbers; () keeps none).
    step_layers : whose states at every generated token are kept.
    forced : one common continuation (text or token ids) that every prompt is made to take instead of choosing.
    temperature : sample from softmax(logits / temperature) with a generator of each prompt's own, None is greedy.
    batch_tokens : padded tokens in a batch, new ones included. deterministic : one prompt at a time.
    use_cache : False reads the whole text again at every step; slower, the same up to rounding.
    Raises `CertificateError` where the taps could not be certified, `InputError` for prompts that cannot be used.
    """
    step_names, prompt_names = lm.sites.select(step_layers), lm.sites.select(layers)
    lm.certificate.require("causal", *(("taps",) if step_names or prompt_names else ()))
    if not use_cache:
        lm.certificate.require("cache")
    common = None if forced is None else continuation_ids(lm, forced)
    steps = at_least(max_new_tokens, 1, "max_new_tokens") if common is None else len(common)
    at_least(batch_tokens, 1, "batch_tokens")
    if temperature is not None and not temperature > 0:
        raise InputError(f"temperature must be above 0, or None for greedy decoding; got {temperature}")
    if temperature is not None and common is not None:
        raise InputError("a forced continuation leaves nothing to sample; give either forced or temperature")
    rows = lm.format_all(prompts, system, template, room=steps)
    job = _Job(lm, rows, steps, prompt_names, step_names, common, temperature, seed, use_cache)
    padded = lm.certificate.holds("left padding")
    lengths = [len(row) + steps for row in rows]
    batches = length_batches(lengths, 1 if deterministic else batch_tokens, padded=padded)
    run_batches(batches, job.run, len(rows), progress)
    info = {
        **model_record(lm),
        "decoding": "forced" if common is not None else "greedy" if temperature is None else f"T = {temperature:g}",
        "max_new_tokens": steps,
        "template": template,
        "seed": seed if temperature is not None else None,
        "deterministic": deterministic,
        "not applied": not_applied(lm),
        "note": "" if padded or deterministic else "batches hold prompts of one length: padding changes the states",
    }
    return job.result(info)


def continuation_ids(lm: LanguageModel, continuation: str | Sequence[int]) -> list[int]:
    """Return the token ids of a continuation, without begin token; raises `InputError` when it is empty."""
    if isinstance(continuation, str):
        ids = list(lm.tokenizer(continuation, add_special_tokens=False)["input_ids"])
    else:
        ids = [int(i) for i in continuation]
    outside = [i for i in ids if not 0 <= i < lm.vocabulary]
    if not ids or outside:
        raise InputError(
            f"a continuation must hold at least 1 token id, all in [0, {lm.vocabulary}); got {outside[:3] or 'none'}"
        )
    return ids


def not_applied(lm: LanguageModel) -> dict[str, Any]:
    """Return what the checkpoint's generation config asks for and plain decoding does not do."""
    from transformers import GenerationConfig

    config, plain = lm.model.generation_config, GenerationConfig()
    names = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size",
             "num_beams", "penalty_alpha", "suppress_tokens", "bad_words_ids", "forced_bos_token_id")  # fmt: skip
    asked = {name: getattr(config, name, None) for name in names}
    return {name: v for name, v in asked.items() if v not in (None, False) and v != getattr(plain, name, None)}


@dataclass
class _Job:
    """The results of all prompts, filled batch by batch; arrays as in `Generation`."""

    lm: LanguageModel
    rows: list[list[int]]
    n_steps: int
    prompt_names: tuple[str, ...]
    step_names: tuple[str, ...]
    forced: list[int] | None
    temperature: float | None
    seed: int
    use_cache: bool

    def __post_init__(self) -> None:
        shape = (len(self.rows), self.n_steps)
        self.tokens = np.full(shape, -1, dtype=np.int64)
        self.entropy, self.log_prob, self.top_prob = (np.full(shape, np.nan) for _ in range(3))
        self.prompt_end: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}
        stops = set() if self.forced is not None else set(self.lm.stop_ids)
        self.stops = np.asarray(sorted(stops), dtype=np.int64)

    def run(self, batch: NDArray[np.int64]) -> None:
        """Decode one batch."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        model = self.lm.model
        ids, mask = pad([self.rows[i] for i in batch], self.lm.pad_id, "left")
        walk = _Walk(self, batch)
        config = GenerationConfig(
            max_new_tokens=self.n_steps + 1,  # one more step to reach the last token's state; `_Walk` ends it
            do_sample=False,
            num_beams=1,
            use_cache=self.use_cache,
            pad_token_id=self.lm.pad_id,
        )
        arguments: dict[str, Any] = {"attention_mask": mask.to(self.lm.device)} if self._masked() else {}
        names = self.lm.sites.select([*self.prompt_names, *self.step_names])
        taps = tapped(self.lm.sites, names, lambda slot, h: walk.state(names[slot], h)) if names else nullcontext()
        seen = model.register_forward_hook(walk.logits)
        try:
            with torch.no_grad(), _own_generation_config(model), taps:
                model.generate(
                    ids.to(self.lm.device),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([walk.choose]),
                    stopping_criteria=StoppingCriteriaList([walk.stop]),
                    **arguments,
                )
        finally:
            seen.remove()

    def result(self, info: Mapping[str, Any]) -> Generation:
        """Return everything as a `Generation`."""
        ends = np.isin(self.tokens, self.stops)
        lengths = (self.tokens >= 0).sum(axis=1)
        tokens = tuple(tuple(row[:n].tolist()) for row, n in zip(self.tokens, lengths, strict=True))
        after = np.arange(self.n_steps)[None] >= lengths[:, None]
        steps = {name: to_numpy(self.steps[name]) for name in self.step_names}
        for values in steps.values():
            values[after] = np.nan
        return Generation(
            prompts=tuple(map(tuple, self.rows)),
            tokens=tokens,
            texts=tuple(self.lm.text(row) for row in tokens),
            finished=np.asarray(ends.any(axis=1)),
            lengths=lengths,
            entropy=self.entropy,
            log_prob=self.log_prob,
            top_prob=self.top_prob,
            prompt_end={name: to_numpy(self.prompt_end[name]) for name in self.prompt_names},
            steps=steps,
            info=info,
        )

    def _masked(self) -> bool:
        return bool(self.lm.certificate.facts["attention_mask"])


class _Walk:
    """One batch on its way: what the model shows at each step, which token each row takes, when to end.

    Prompts are padded on the left, so the newest token of every row is the last position of whatever the model is
    given: the prompt, one token on a cache, or the whole text without one.
    """

    def __init__(self, job: _Job, batch: NDArray[np.int64]) -> None:
        self.job, self.batch = job, batch
        self.items = torch.from_numpy(batch)
        self.chosen = 0  # tokens chosen so far
        self.running = np.ones(len(batch), dtype=bool)  # rows without an end token so far
        self.ended = False
        self.last: Tensor | None = None
        names = ("generate", "sample")
        self.chance = [generator(job.seed, *names, int(i)) for i in batch] if job.temperature else []

    def state(self, layer: str, hidden: Tensor) -> None:
        """Keep the newest token's state: the prompt's end, then generated token `chosen - 1`."""
        if self.chosen == 0 and layer in self.job.prompt_names:
            newest = hidden[:, -1].to("cpu")
            self._buffer(self.job.prompt_end, layer, newest)[self.items] = newest
        elif 0 < self.chosen <= self.job.n_steps and layer in self.job.step_names:
            newest = hidden[:, -1].to("cpu")
            self._buffer(self.job.steps, layer, newest)[self.items, self.chosen - 1] = newest

    def logits(self, module: Any, args: Any, output: Any) -> None:  # noqa: ANN401
        """Keep the raw next-token logits of a forward pass of the whole model."""
        self.last = output.logits[:, -1]

    def choose(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Choose every row's next token, measure, and return scores that leave no other choice."""
        taken = np.full(len(self.batch), self.job.lm.pad_id, dtype=np.int64)
        self.ended = not self.running.any() or self.chosen == self.job.n_steps
        if not self.ended:
            assert self.last is not None
            taken = self._choose(self.last)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, torch.from_numpy(taken).to(scores.device)[:, None], 0.0)

    def stop(self, ids: Tensor, scores: Tensor, **more: Any) -> Tensor:  # noqa: ANN401
        """End when the state of every row's last token has been seen, or at once where no such state is kept."""
        over = self.ended or (not self.job.step_names and (not self.running.any() or self.chosen == self.job.n_steps))
        return torch.full((ids.shape[0],), over, dtype=torch.bool, device=ids.device)

    def _choose(self, raw: Tensor) -> NDArray[np.int64]:
        job, t = self.job, self.chosen
        logits = (raw.cpu() if raw.device.type == "mps" else raw).double()
        log_p = torch.log_softmax(logits, dim=-1)
        if job.forced is not None:
            best = torch.full((len(self.batch),), job.forced[t], device=logits.device)
        elif job.temperature is not None:
            best = self._sample(torch.softmax(logits / job.temperature, dim=-1))
        else:
            best = raw.argmax(dim=-1).to(logits.device)
        entropy = torch.special.entr(log_p.exp()).sum(dim=-1)
        measured = torch.stack([entropy, log_p.gather(1, best[:, None])[:, 0], log_p.max(dim=-1).values.exp()])
        values, taken = measured.cpu().numpy(), best.cpu().numpy().astype(np.int64)
        if not np.isfinite(values[0]).all():
            bad = self.batch[~np.isfinite(values[0])]
            raise InputError(
                f"next-token logits must be numbers; those of prompt {bad[0]} at step {t} are NaN or infinite: "
                "load the model in float32 or bfloat16"
            )
        rows = self.batch[self.running]
        for array, column in zip((job.entropy, job.log_prob, job.top_prob), values, strict=True):
            array[rows, t] = column[self.running]
        job.tokens[rows, t] = taken[self.running]
        taken[~self.running] = job.lm.pad_id
        self.running &= ~np.isin(taken, job.stops)
        self.chosen += 1
        return taken

    def _sample(self, p: Tensor) -> Tensor:
        """Draw from each row's distribution by inverting its cumulative sum at that prompt's own uniform number."""
        u = torch.tensor([chance.random() for chance in self.chance], dtype=torch.float64, device=p.device)
        cumulative = p.cumsum(dim=-1)
        drawn = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)[:, 0]
        return drawn.clamp(max=p.shape[1] - 1)

    def _buffer(self, where: dict[str, Tensor], layer: str, like: Tensor) -> Tensor:
        if layer not in where:
            steps = () if where is self.job.prompt_end else (self.job.n_steps,)
            where[layer] = torch.zeros(len(self.job.rows), *steps, like.shape[1], dtype=like.dtype)
        return where[layer]


@contextmanager
def _own_generation_config(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Keep the checkpoint's generation config out of a call of `generate`, which merges it into the one it is given."""
    from transformers import GenerationConfig

    theirs = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = theirs


def _kept(layer: str, kept: Mapping[str, Any]) -> str:
    if layer not in kept:
        raise InputError(
            f"no states of {layer!r} were kept; there are {', '.join(kept) or 'none'}: name it in step_layers"
        )
    return layer
