"""Decoding: take batches of prompts token by token through a model and keep what it shows on the way.

The model's own `generate` feeds the model, so every kind of cache transformers knows works; which token is chosen, and
when the run ends, is decided here. Taps see the residual stream, a hook on the whole model sees the raw logits, and a
logits processor that leaves one choice makes `generate` take the token chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmprobe.capture_job import SUBLAYER
from lmprobe.inputs import pad
from lmprobe.interventions import Read, intervened
from lmprobe.models import LanguageModel
from lmprobe.taps import tapped
from probecore.errors import InputError
from probecore.seeds import generator


@dataclass
class Decoding:
    """How to decode N prompts in at most `n_steps` steps, and what came of it, filled batch by batch.

    prompt_names, step_names : layers kept at the prompts' ends and at every generated token.
    tokens : (N, n_steps) chosen ids, -1 after the end. entropy, log_prob, top_prob : as in `Generation`.
    prompt_end, steps : layer -> tensor (N, D), (N, n_steps, D) in the model's dtype.
    """

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

    def batch(self, batch: NDArray[np.int64]) -> None:
        """Decode one batch."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        model = self.lm.model
        ids, mask = pad([self.rows[i] for i in batch], self.lm.pad_id, "left")
        self.tokens[batch] = -1  # a batch that ran out of memory half way has left something
        for measured in (self.entropy, self.log_prob, self.top_prob):
            measured[batch] = np.nan
        walk = Walk(self, batch)
        config = GenerationConfig(
            max_new_tokens=self.n_steps + 1,  # one more step to reach the last token's state; `Walk` ends it
            do_sample=False,
            num_beams=1,
            use_cache=self.use_cache,
            pad_token_id=self.lm.pad_id,
        )
        masked = self.lm.certificate.facts["attention_mask"]
        arguments: dict[str, Any] = {"attention_mask": mask.to(self.lm.device)} if masked else {}
        wanted = dict.fromkeys([*self.prompt_names, *self.step_names])
        inner = tuple(name for name in wanted if SUBLAYER.fullmatch(name))
        names = self.lm.sites.select([name for name in wanted if name not in inner])
        taps = tapped(self.lm.sites, names, lambda slot, h: walk.state(names[slot], h)) if names else nullcontext()
        read = intervened(self.lm, Read(walk.state, at=inner)) if inner else nullcontext()
        seen = model.register_forward_hook(walk.logits)
        try:
            with torch.no_grad(), _own_generation_config(model), read, taps:
                model.generate(
                    ids.to(self.lm.device),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([walk.choose]),
                    stopping_criteria=StoppingCriteriaList([walk.stop]),
                    **arguments,
                )
        finally:
            seen.remove()


class Walk:
    """One batch on its way: what the model shows at each step, which token each row takes, when to end.

    Prompts are padded on the left, so the newest token of every row is the last position of whatever the model is
    given: the prompt, one token on a cache, or the whole text without one.
    """

    def __init__(self, job: Decoding, batch: NDArray[np.int64]) -> None:
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
        if self.ended:  # some loops run one step further before they look
            return
        if self.chosen == 0 and layer in self.job.prompt_names:
            newest = hidden[:, -1].to("cpu")
            self._buffer(self.job.prompt_end, layer, newest)[self.items] = newest
        elif 0 < self.chosen <= self.job.n_steps and layer in self.job.step_names:
            newest = hidden[:, -1].to("cpu")
            self._buffer(self.job.steps, layer, newest)[self.items, self.chosen - 1] = newest

    def logits(self, module: Any, args: Any, output: Any) -> None:  # noqa: ANN401
        """Keep the raw next-token logits of a forward pass of the whole model."""
        self.last = output.logits[:, -1].clone()  # a slice would keep the logits of the whole prompt alive

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
        broken = self.batch[self.running & ~np.isfinite(values[0])]
        if len(broken):
            raise InputError(
                f"next-token logits must be numbers; those of prompt {broken[0]} at step {t} are NaN or infinite: "
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
