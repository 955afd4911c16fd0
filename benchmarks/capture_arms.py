"""What each library is asked to do in benchmarks/capture.py, in the best form of it that we know.

Every arm is given the same weights, token ids, masks, position ids and batches (those that lmprobe makes: sorted by
length, under a token budget) and returns a tensor on the CPU:
    capture     (prompts, blocks, width)          residual stream after every block at the last real token
    generate    (prompts, steps, blocks, width)   the states from which each new token was chosen
    sweep       (blocks, prompts, vocabulary)     next-token logits with one direction projected out after one block

Single passes are padded on the right, as lmprobe pads them, and read at each row's own last token; where a library can
only read one column of a batch it gets the same batch padded on the left, and so does everything that generates. Peers
are spared what they need not do: the head is not run, or on one position only, where they can be told so, and what
they keep is copied out of the states of all tokens.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lmprobe import generate, wrap_model
from lmprobe.capture import capture
from lmprobe.inputs import length_batches, pad, positions_of
from lmprobe.replay import record, replay

PACKAGES = {"TransformerLens": "transformer_lens", "nnsight": "nnsight", "pyvene": "pyvene"}


class Skipped(Exception):
    """A library cannot do this, and why."""


@dataclass(frozen=True)
class Batch:
    """Prompts of one forward pass: their numbers, ids and mask (batch, time), columns of their last tokens."""

    numbers: np.ndarray
    ids: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor

    @property
    def rows(self):
        return torch.arange(len(self.numbers), device=self.last.device)

    def inputs(self, **more):
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions_of(self.mask), **more}


@dataclass
class Work:
    """A model and what is done with it.

    prompts : rows of token ids. steps : new tokens generated. sweep : how many prompts it takes, and tokens of each.
    """

    model: object
    tokenizer: object
    prompts: list
    steps: int
    batch_tokens: int
    sweep: tuple

    def __post_init__(self):
        config, chance = self.model.config, torch.Generator().manual_seed(1)
        self.device, self.dtype = self.model.device, self.model.dtype
        self.n_blocks, self.width = config.num_hidden_layers, config.hidden_size
        direction = torch.randn(self.width, generator=chance)
        self.direction = (direction / direction.norm()).to(self.device, self.dtype)
        self.blocks = list(self.model.get_decoder().layers)

    def batches(self, side="right", room=0, prompts=None):
        prompts = self.prompts if prompts is None else prompts
        for numbers in length_batches([len(row) + room for row in prompts], self.batch_tokens):
            ids, mask = (x.to(self.device) for x in pad([prompts[i] for i in numbers], 0, side))
            last = mask.sum(-1) - 1 if side == "right" else torch.full((len(ids),), ids.shape[1] - 1).to(self.device)
            yield Batch(numbers, ids, mask, last)

    def sweep_batches(self):
        """Return the batches of the sweep, a part of the prompts: it runs the model once for every block."""
        return self.batches("left", prompts=[row[-self.sweep[1] :] for row in self.prompts[: self.sweep[0]]])

    def project(self, hidden):
        """Return hidden states without the direction."""
        return hidden - (hidden @ self.direction)[..., None] * self.direction

    def gathered(self, parts, axis=0):
        """Join the results of batches [(batch, tensor)] in the order of the prompts."""
        order = torch.from_numpy(np.argsort(np.concatenate([batch.numbers for batch, _ in parts])))
        return torch.cat([values.to("cpu", torch.float32) for _, values in parts], axis).index_select(axis, order)

    def greedy(self, **more):
        return dict(max_new_tokens=self.steps, min_new_tokens=self.steps, do_sample=False, pad_token_id=0, **more)


def first(output):
    """A block returns a tensor or a tuple, by architecture and version."""
    return output[0] if isinstance(output, tuple) else output


def bare(work):
    """The floor: the same passes with nothing kept. Blocks and final norm alone; plain `generate`; plain suffixes."""

    def forward():
        for batch in work.batches():
            work.model.base_model(**batch.inputs(use_cache=False))

    def continued(more=0):
        for batch in work.batches("left", work.steps):
            options = work.greedy() | {"max_new_tokens": work.steps + more, "min_new_tokens": work.steps + more}
            work.model.generate(batch.ids, attention_mask=batch.mask, **options)

    def sweep():
        for batch in work.sweep_batches():
            for _ in work.blocks:
                work.model(**batch.inputs(use_cache=False, logits_to_keep=1))

    return {
        "capture": {"bare forward": forward},
        "generate": {"bare generate": continued, "bare generate, 1 step more": partial(continued, 1)},
        "sweep": {"bare forwards": sweep},
    }


def ours(work):
    lm = wrap_model(work.model, work.tokenizer, name="benchmark")
    blocks = [f"block {i}" for i in range(work.n_blocks)]

    def captured(budget=None):
        acts = capture(lm, work.prompts, layers=blocks, batch_tokens=budget or work.batch_tokens)
        return torch.stack([torch.from_numpy(acts.values(block)) for block in blocks], 1)

    def generated():
        run = generate(
            lm, work.prompts, max_new_tokens=work.steps, layers=blocks, step_layers=blocks,
            batch_tokens=work.batch_tokens,
        )  # fmt: skip
        assert (run.lengths == work.steps).all(), "an end token was chosen: the texts are not those of the peers"
        kept = [np.concatenate([run.prompt_end[b][:, None], run.steps[b][:, :-1]], 1) for b in blocks]
        return torch.from_numpy(np.stack(kept, 2))

    def swept():
        parts = []
        for batch in work.sweep_batches():
            clean = record(lm, batch.ids, batch.mask, logits_to_keep=1)
            states = (work.project(state) for state in clean.states)
            logits = [replay(lm, clean, i + 1, state, logits_to_keep=1)[:, -1] for i, state in enumerate(states)]
            parts.append((batch, torch.stack(logits)))
        return work.gathered(parts, 1)

    smaller = max(map(len, work.prompts))
    return {
        "capture": {"lmprobe": captured, f"lmprobe, batches of {smaller} tokens": lambda: captured(smaller)},
        "generate": {"lmprobe": generated},
        "sweep": {"lmprobe (suffix replay)": swept},
    }


def hugging_face(work):
    """`output_hidden_states`, and full runs with a hook as the sweep that everyone writes."""

    def captured():
        parts = []
        for batch in work.batches():
            states = work.model.base_model(**batch.inputs(use_cache=False, output_hidden_states=True)).hidden_states
            parts.append((batch, torch.stack([s[batch.rows, batch.last] for s in states[1:]], 1)))
        return work.gathered(parts)

    def generated():
        parts = []
        for batch in work.batches("left", work.steps):
            run = work.model.generate(
                batch.ids, attention_mask=batch.mask, return_dict_in_generate=True, output_hidden_states=True,
                **work.greedy(),
            )  # fmt: skip
            steps = [torch.stack([s[:, -1] for s in step[1:]], 1) for step in run.hidden_states]
            parts.append((batch, torch.stack(steps, 1)))
        return work.gathered(parts)

    def swept():
        parts = []
        for batch in work.sweep_batches():
            logits = []
            for block in work.blocks:
                hook = block.register_forward_hook(partial(_changed, work.project))
                logits.append(work.model(**batch.inputs(use_cache=False, logits_to_keep=1)).logits[:, -1])
                hook.remove()
            parts.append((batch, torch.stack(logits)))
        return work.gathered(parts, 1)

    return {
        "capture": {"output_hidden_states": captured},
        "generate": {"output_hidden_states": generated},
        "sweep": {"full runs with a hook": swept},
    }


def _changed(change, module, args, output):
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def reference(work, task, side):
    """What `output_hidden_states` says, with a copying hook for the last block, which it shows after the final norm."""
    parts = []
    if task == "sweep":
        return hugging_face(work)["sweep"]["full runs with a hook"]()
    for batch in work.batches(side, work.steps if task == "generate" else 0):
        last = []
        hook = work.blocks[-1].register_forward_hook(
            lambda _m, _a, output, batch=batch, last=last: last.append(
                first(output)[batch.rows, batch.last if task == "capture" else -1].clone()
            )
        )
        if task == "capture":
            states = work.model(**batch.inputs(use_cache=False, output_hidden_states=True)).hidden_states
            values = torch.stack([*(s[batch.rows, batch.last] for s in states[1:-1]), last[0]], 1)
        else:
            run = work.model.generate(
                batch.ids, attention_mask=batch.mask, return_dict_in_generate=True, output_hidden_states=True,
                **work.greedy(),
            )  # fmt: skip
            steps = [torch.stack([s[:, -1] for s in step[1:-1]], 1) for step in run.hidden_states]
            values = torch.cat([torch.stack(steps, 1), torch.stack(last, 1)[:, :, None]], 2)
        hook.remove()
        parts.append((batch, values))
    return work.gathered(parts)


def transformer_lens(work):
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        work.model.config.name_or_path, hf_model=work.model, tokenizer=work.tokenizer, device=str(work.device),
        dtype=work.dtype,
    )  # fmt: skip
    names = [f"blocks.{i}.hook_out" for i in range(work.n_blocks)]

    def run(batch, hooks, return_type=None):
        inputs = batch.inputs(use_cache=False, logits_to_keep=1)
        return bridge.run_with_hooks(inputs.pop("input_ids"), fwd_hooks=hooks, return_type=return_type, **inputs)

    def captured():  # hooks that copy: run_with_cache cuts all rows at one place, in some versions not at all
        parts = []
        for batch in work.batches():
            kept = {}

            def keep(hidden, hook, batch=batch, kept=kept):
                kept[hook.name] = hidden[batch.rows, batch.last]

            run(batch, [(name, keep) for name in names])
            parts.append((batch, torch.stack([kept[name] for name in names], 1)))
        return work.gathered(parts)

    def generated():  # one text at a time: its generate knows no mask; the states come from running the text again
        parts = []
        for i, row in enumerate(work.prompts):
            ids, kept, start = torch.tensor([row], device=work.device), {}, len(row) - 1
            text = bridge.generate(
                ids, max_new_tokens=work.steps, stop_at_eos=False, do_sample=False, return_type="tokens", verbose=False
            )
            batch = Batch(np.array([i]), text, torch.ones_like(text), ids.new_tensor([text.shape[1] - 1]))

            def keep(hidden, hook, columns=slice(start, start + work.steps), kept=kept):
                kept[hook.name] = hidden[:, columns].clone()

            run(batch, [(name, keep) for name in names])
            parts.append((batch, torch.stack([kept[name] for name in names], 2)))
        return work.gathered(parts)

    def swept():
        parts = []
        for batch in work.sweep_batches():
            hooks = [[(name, lambda hidden, hook: work.project(hidden))] for name in names]
            logits = [run(batch, one, return_type="logits")[:, -1] for one in hooks]
            parts.append((batch, torch.stack(logits)))
        return work.gathered(parts, 1)

    return {
        "capture": {"TransformerLens": captured},
        "generate": {"TransformerLens, one by one, text run again": generated},
        "sweep": {"TransformerLens": swept},
    }


def nnsight(work):
    import nnsight as nns

    model = nns.TransformersModel(work.model, tokenizer=work.tokenizer, task="text-generation")
    layers = list(model.model.layers)

    def traced(batch):
        with model.trace(batch.inputs(), use_cache=False) as tracer:
            kept = nns.save([])
            for layer in layers:
                kept.append(first(layer.output)[batch.rows, batch.last])
            tracer.stop()
        return list(kept)

    def captured():
        return work.gathered([(batch, torch.stack(traced(batch), 1)) for batch in work.batches()])

    def sliced():  # as its documentation does it: a kept slice keeps the states of all tokens alive
        parts = []
        for batch in work.batches("left"):
            with model.trace(batch.inputs(), use_cache=False):
                kept = nns.save([])
                for layer in layers:
                    kept.append(first(layer.output)[:, -1])
            parts.append((batch, torch.stack(list(kept), 1)))
        return work.gathered(parts)

    def generated():
        parts = []
        for batch in work.batches("left", work.steps):
            inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
            with model.generate(inputs, **work.greedy()) as tracer:
                kept = nns.save([])
                for _ in tracer.iter[: work.steps]:
                    for layer in layers:
                        kept.append(first(layer.output)[:, -1].clone())
            states = torch.stack(list(kept), 1).unflatten(1, (work.steps, work.n_blocks))
            parts.append((batch, states))
        return work.gathered(parts)

    def changed(batch, layer):
        with model.trace(batch.inputs(), use_cache=False, logits_to_keep=1):
            layer.output = _changed(work.project, None, None, layer.output)
            logits = model.output.logits[:, -1].save()
        return logits

    def swept():
        parts = []
        for batch in work.sweep_batches():
            parts.append((batch, torch.stack([changed(batch, layer) for layer in layers])))
        return work.gathered(parts, 1)

    def recorded(batch):
        with model.trace(batch.inputs(), use_cache=False, logits_to_keep=1) as tracer:
            kept = nns.save([])
            for layer in layers:
                kept.append(first(layer.output).clone())
            tracer.stop()
        return list(kept)

    def resumed(batch, k, state):
        with model.trace(batch.inputs(), use_cache=False, logits_to_keep=1):
            for layer in layers[: k + 1]:
                layer.skip(state)
            logits = model.output.logits[:, -1].save()
        return logits

    def skipping():
        parts = []
        for batch in work.sweep_batches():
            states = recorded(batch)
            logits = [resumed(batch, k, work.project(state)) for k, state in enumerate(states)]
            parts.append((batch, torch.stack(logits)))
        return work.gathered(parts, 1)

    return {
        "capture": {"nnsight": captured, "nnsight, as documented": sliced},
        "generate": {"nnsight": generated},
        "sweep": {"nnsight": swept, "nnsight, blocks skipped by hand": skipping},
    }


def pyvene(work):
    import pyvene as pv

    class Projected(pv.ConstantSourceIntervention):
        def forward(self, base, source=None, subspaces=None, **more):
            return work.project(base)

    def wrapped(blocks, kind, units):
        parts = [
            {"layer": i, "component": "block_output", "intervention_type": kind, "max_number_of_units": units}
            for i in blocks
        ]
        model = pv.IntervenableModel(pv.IntervenableConfig(parts), model=work.model)
        for one in model.interventions.values():
            one.keep_last_dim = True  # else it lays all tokens side by side
        return model

    collecting = {n: wrapped(range(work.n_blocks), pv.CollectIntervention, n) for n in (1, work.steps)}
    changing = [wrapped([i], Projected, 1) for i in range(work.n_blocks)]

    def collected(batch, columns):
        where = {"base": [columns] * work.n_blocks}
        model = collecting[len(columns[0])]
        (_, states), _ = model(base=batch.inputs(use_cache=False, logits_to_keep=1), unit_locations=where)
        shape = (work.n_blocks, len(batch.numbers), len(columns[0]), work.width)
        return torch.stack([state.reshape(-1) for state in states]).reshape(shape).movedim(0, 2)

    def captured():
        parts = []
        for batch in work.batches():
            parts.append((batch, collected(batch, [[int(i)] for i in batch.last])[:, 0]))
        return work.gathered(parts)

    def generated():
        parts = []
        for batch in work.batches("left", work.steps):
            text = work.model.generate(batch.ids, attention_mask=batch.mask, **work.greedy())
            mask = torch.cat([batch.mask, batch.mask.new_ones(len(text), work.steps)], 1)
            whole = Batch(batch.numbers, text, mask, batch.last)
            start = batch.ids.shape[1] - 1
            parts.append((batch, collected(whole, [list(range(start, start + work.steps))] * len(text))))
        return work.gathered(parts)

    def swept():
        parts = []
        for batch in work.sweep_batches():
            columns = [list(range(batch.ids.shape[1]))] * len(batch.numbers)
            inputs = batch.inputs(use_cache=False, logits_to_keep=1)
            logits = [model(base=inputs, unit_locations={"base": [columns]})[1].logits[:, -1] for model in changing]
            parts.append((batch, torch.stack(logits)))
        return work.gathered(parts, 1)

    return {
        "capture": {"pyvene": captured},
        "generate": {"pyvene, text run again": generated},
        "sweep": {"pyvene": swept},
    }


LIBRARIES = {
    "bare": bare, "lmprobe": ours, "Hugging Face": hugging_face, "TransformerLens": transformer_lens,
    "nnsight": nnsight, "pyvene": pyvene,
}  # fmt: skip
