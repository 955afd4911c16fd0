"""Generate: text, entropies and residual states of a continuation, in one pass with the key/value cache.

Conventions. N prompts, S steps. Step t is the choice of generated token t. `entropy[i, t]` (nats, float64) is that of
the raw next-token distribution from which token t was chosen: before temperature, penalties or any other processor.
`entropy[i, 0]` is therefore the entropy at the prompt's end. `states(layer)[i, t]` is the residual state AT generated
token t, the last one included (one more one-token step on the same cache). A row is valid up to and including its
first end token; everything after it is NaN.

Decoding is plain: greedy, or sampling at a temperature. What a checkpoint's own generation config asks for (sampling,
penalties, beams) is not applied and is listed in `info["not applied"]`. Prompts are padded on the left, positions
counted from the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmprobe.capture import activations_of, model_record, to_numpy
from lmprobe.capture_job import wanted_layers
from lmprobe.decoding import Decoding
from lmprobe.inputs import Progress, length_batches, run_batches
from lmprobe.models import LanguageModel, Prompt, Template
from lmprobe.selectors import Selector, selector
from probecore.activations import Activations, Label
from probecore.errors import InputError
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

    def step_activations(
        self,
        at: str | Selector = "all generated",
        groups: ArrayLike | None = None,
        labels: Mapping[str, Label | ArrayLike] | None = None,
        names: Sequence[str] | None = None,
    ) -> Activations:
        """Return the states at generated tokens as `Activations`, one item per token or per prompt as `at` says.

        groups, labels : one per prompt. A token that was written counts up to and including the first end token.
        """
        if not self.steps:
            raise InputError("no states of generated tokens were kept: generate with step_layers='all'")
        place = selector(at) if isinstance(at, str) else at
        if place.scope != "generated":
            raise InputError(f"at must select generated tokens ('all generated', 'mean generated'); got {str(place)!r}")
        picks = [place.of(np.arange(n), f"prompt {i}") for i, n in enumerate(self.lengths.tolist())]
        mean = place.which.startswith("mean")
        values = {}
        for layer, states in self.steps.items():
            chosen = [states[i, pick] for i, pick in enumerate(picks)]
            means = [rows.mean(axis=0, dtype=np.float64, keepdims=True).astype(rows.dtype) for rows in chosen]
            values[layer] = np.concatenate(means if mean else chosen)
        info = {**self.info, "representation": f"residual stream at {place}", "texts": list(self.texts)}
        return activations_of(values, self.n_prompts, picks if place.per_token else None, groups, labels, names, info)


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

    layers : whose states at the prompts' ends are kept, as `capture` takes them; () keeps none.
    step_layers : whose states at every generated token are kept.
    forced : one common continuation (text or token ids) that every prompt is made to take instead of choosing.
    temperature : sample from softmax(logits / temperature) with a generator of each prompt's own, None is greedy.
    batch_tokens : padded tokens in a batch, new ones included. deterministic : one prompt at a time.
    use_cache : False reads the whole text again at every step; slower, the same up to rounding.
    Raises `CertificateError` where the taps could not be certified, `InputError` for prompts that cannot be used.
    """
    step_names, prompt_names = (wanted_layers(lm, some) if len(some) else () for some in (step_layers, layers))
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
    run = Decoding(lm, rows, steps, prompt_names, step_names, common, temperature, seed, use_cache)
    padded = lm.certificate.holds("left padding")
    lengths = [len(row) + steps for row in rows]
    batches = length_batches(lengths, 1 if deterministic else batch_tokens, padded=padded)
    run_batches(batches, run.batch, len(rows), progress)
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
    return _result(run, info)


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


def _result(run: Decoding, info: Mapping[str, Any]) -> Generation:
    ends = np.isin(run.tokens, run.stops)
    lengths = (run.tokens >= 0).sum(axis=1)
    tokens = tuple(tuple(row[:n].tolist()) for row, n in zip(run.tokens, lengths, strict=True))
    after = np.arange(run.n_steps)[None] >= lengths[:, None]
    steps = {name: to_numpy(run.steps[name]) for name in run.step_names}
    for values in steps.values():
        values[after] = np.nan
    return Generation(
        prompts=tuple(map(tuple, run.rows)),
        tokens=tokens,
        texts=tuple(run.lm.text(row) for row in tokens),
        finished=np.asarray(ends.any(axis=1)),
        lengths=lengths,
        entropy=run.entropy,
        log_prob=run.log_prob,
        top_prob=run.top_prob,
        prompt_end={name: to_numpy(run.prompt_end[name]) for name in run.prompt_names},
        steps=steps,
        info=info,
    )


def _kept(layer: str, kept: Mapping[str, Any]) -> str:
    if layer not in kept:
        raise InputError(
            f"no states of {layer!r} were kept; there are {', '.join(kept) or 'none'}: name it in step_layers"
        )
    return layer
