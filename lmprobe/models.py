"""LanguageModel: a causal language model with its tokenizer, its sites, its certificate and its fingerprints.

Conventions. Token ids are plain lists of ints without padding; every padding and masking is done here, never by the
tokenizer, whose vocabulary and settings are left as they are. A formatted prompt carries one begin token where the
tokenizer or the chat template adds one, never two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lmprobe.certificate import Certificate
from lmprobe.certify import certify
from lmprobe.encoders import bare_encoder, context_of, is_encoder
from lmprobe.fingerprint import template_hash, tokenizer_hash, weights_hash
from lmprobe.inputs import device_of
from lmprobe.sites import Sites, find_sites
from probecore.errors import InputError, shorten
from probecore.provenance import versions
from probecore.validation import one_of

Template = Literal["auto", "chat", "raw"]
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model ready to be probed; made by `open_model` or `wrap_model`.

    info : name, revision, weight, tokenizer and chat-template hashes, architecture, dtype, attention implementation,
        versions; JSON types only, no path of the machine.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    sites: Sites = field(repr=False)
    certificate: Certificate = field(repr=False)
    info: Mapping[str, Any]
    pad_id: int = field(repr=False)
    stop_ids: tuple[int, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the model, as rows show it."""
        return str(self.info["model"])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers of the residual stream: embed, block 0 .. block L-1."""
        return self.sites.layers

    @property
    def device(self) -> torch.device:
        """Device on which token ids enter the model."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the residual stream."""
        dtype: torch.dtype = getattr(torch, self.certificate.facts["dtype"])
        return dtype

    @property
    def vocabulary(self) -> int:
        """Number of token ids the model can be given."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def has_template(self) -> bool:
        """Tell whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def context(self) -> int | None:
        """Longest sequence the model was configured for, None where it states none."""
        return context_of(self.model)

    @property
    def is_encoder(self) -> bool:
        """Tell whether this is a bidirectional encoder: its states can be probed, it cannot continue a text."""
        return bool(self.certificate.facts["encoder"])

    def format(self, prompt: Prompt, system: str | None = None, template: Template = "auto") -> list[int]:
        """Return the token ids of one prompt.

        prompt : a text, a list of chat messages ({"role", "content"}), or token ids, which are only checked.
        system : a system message; needs the chat template.
        template : "chat" applies the tokenizer's chat template and adds the generation prompt, "raw" tokenizes the
            text as it is, "auto" takes "chat" where there is a template.
        Raises `InputError` for an empty prompt, a template that is missing or refuses, ids outside the vocabulary.
        """
        if len(prompt) and not isinstance(prompt, str) and not isinstance(prompt[0], Mapping):
            return self._checked([int(i) for i in prompt])  # type: ignore[arg-type]
        text, templated = self.rendered(prompt, system, template)
        ids = self.tokenizer(text, add_special_tokens=not templated)["input_ids"]
        begin = getattr(self.tokenizer, "bos_token_id", None)
        while begin is not None and ids[:2] == [begin, begin]:
            ids = ids[1:]
        return self._checked(ids)

    def rendered(self, prompt: Prompt, system: str | None = None, template: Template = "auto") -> tuple[str, bool]:
        """Return the text that is tokenized for a prompt that is no row of ids, and whether it was put in a template.

        Raises `InputError` as `format` does.
        """
        one_of(template, ("auto", "chat", "raw"), "template")
        if len(prompt) == 0 or (isinstance(prompt, str) and not prompt.strip()):
            raise InputError("a prompt must hold text; got an empty one: leave it out")
        chat = template == "chat" or (template == "auto" and self.has_template)
        if not chat and (system is not None or not isinstance(prompt, str)):
            raise InputError(
                f"a system message and chat messages need a chat template; {self.name} "
                f"{'is asked for template raw' if self.has_template else 'has none'}: give plain texts"
            )
        return (self._templated(prompt, system), True) if chat else (str(prompt), False)

    def format_all(
        self, prompts: Sequence[Prompt], system: str | None = None, template: Template = "auto", room: int = 0
    ) -> list[list[int]]:
        """Return the token ids of prompts, each short enough to leave `room` tokens of the model's context."""
        if isinstance(prompts, str) or not len(prompts):
            raise InputError(f"prompts must be a list of at least 1 prompt; got {prompts!r:.60}")
        rows = [self.format(prompt, system, template) for prompt in prompts]
        context = self.context  # looked up in the modules: once, not once a prompt
        too_long = [i for i, row in enumerate(rows) if context is not None and len(row) + room > context]
        if too_long:
            raise InputError(
                f"a prompt and {room} more tokens must fit into the {context} tokens of {self.name}; prompts "
                f"{shorten(too_long)} have {shorten([len(rows[i]) for i in too_long])}: shorten them"
            )
        return rows

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _templated(self, prompt: Prompt, system: str | None) -> str:
        if not self.has_template:
            raise InputError(
                f"template 'chat' needs a chat template; the tokenizer of {self.name} has none: take 'raw'"
            )
        messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja raises whatever the template's author chose
            raise InputError(
                f"the chat template of {self.name} must accept roles {[m.get('role') for m in messages]}; "
                f"it says: {str(error)[:120]}: give other messages, or no system message"
            ) from error
        return str(text)

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise InputError("a prompt must hold at least 1 token; got 0: leave it out")
        size = self.vocabulary
        outside = [i for i in ids if not 0 <= i < size]
        if outside:
            raise InputError(
                f"token ids must lie in [0, {size}); got {shorten(outside, most=3)}: "
                "model and tokenizer do not belong together"
            )
        return ids


def wrap_model(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    *,
    name: str | None = None,
    revision: str | None = None,
    blocks: str | None = None,
    final_norm: str | None = None,
) -> LanguageModel:
    """Return a `LanguageModel` of a model and tokenizer in memory; the model is put into eval mode, not copied.

    The model may be causal or an encoder of the BERT family (which loses head and pooler: `lmprobe.encoders`).
    blocks, final_norm : dotted paths of the block list and the final norm, where the search does not find them.
    Raises `InputError` for something that is neither, or is compiled, `CertificateError` when the blocks are not
    found or the model cannot run.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config") or getattr(model, "config", None) is None:
        raise InputError(f"a model must be a transformers model; got {type(model).__name__}: load it with open_model")
    config: Any = model.config
    encoder = is_encoder(model)
    if getattr(config, "is_encoder_decoder", False) or not (encoder or _has_head(model)):
        raise InputError(
            f"a model must be a causal language model (a decoder with a language-modelling head) or an encoder of the "
            f"BERT family; got a {type(model).__name__}: open a text-generation model or an encoder"
        )
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()) or hasattr(
        model, "_orig_mod"
    ):
        raise InputError("a model must not be compiled: its graph runs past the taps; give it before torch.compile")
    model.eval()
    if encoder:
        model = bare_encoder(model)
    sites = find_sites(model, blocks, final_norm)
    pad_id = _pad_id(model, tokenizer)
    certificate = certify(model, sites, pad_id)
    if encoder and final_norm is None and certificate.check("final norm").holds is False:
        sites = replace(sites, norm_path=None, norm=None)  # a norm beside the blocks, not of the stream
        certificate = certify(model, sites, pad_id)
    stops = () if encoder else _stop_ids(model, tokenizer)
    info = {
        "model": name or _name_of(model),
        "revision": revision or getattr(config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "model_type": getattr(config, "model_type", None),
        "weights_hash": weights_hash(model),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "template_hash": template_hash(tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "blocks": len(sites.blocks),
        "width": certificate.width,
        "dtype": certificate.facts["dtype"],
        "attention": certificate.facts["attention"],
        "device": certificate.facts["device"],
        "encoder": encoder,
        "quantised": certificate.facts["quantised"],
        "stop_ids": list(stops),
        "versions": {key: value for key, value in versions().items() if key in ("python", "torch", "transformers")},
    }
    return LanguageModel(model, tokenizer, sites, certificate, info, pad_id, stops)


def _has_head(model: Any) -> bool:  # noqa: ANN401
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "can_generate"):
        return False
    return model.get_output_embeddings() is not None and bool(model.can_generate())


def _name_of(model: Any) -> str:  # noqa: ANN401
    path = str(getattr(model.config, "_name_or_path", "") or "")
    return (Path(path).name if Path(path).is_dir() else path) or type(model).__name__


def _pad_id(model: Any, tokenizer: Any) -> int:  # noqa: ANN401
    """Return a token id to fill pads with: any id the embedding has; pads are always masked.

    An encoder's own pad token comes first, because some count positions by it.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    own = getattr(model.config, "pad_token_id", None) if is_encoder(model) else None
    candidates = (own, getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None), 0)
    return next(i for i in candidates if isinstance(i, int) and 0 <= i < size)


def _stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the ids that end a generated text: those of the generation config and the tokenizer's end token."""
    config = getattr(model, "generation_config", None)
    stated = getattr(config, "eos_token_id", None)
    ids = set(stated if isinstance(stated, (list, tuple)) else [stated]) | {getattr(tokenizer, "eos_token_id", None)}
    return tuple(sorted(int(i) for i in ids if i is not None))
