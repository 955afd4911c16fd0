"""The Qwen3-TTS talker: from a text and an instruction to codes, and what every layer would say on the way.

Conventions. A frame (80 ms) has 16 codes. The talker (28 layers) predicts code 0 of a frame at the position before it;
its head is `codec_head`, ids below `n_entries` are codes, of the others only the end of speech can be said, and not in
the first two frames: `allowed` is the mask that `generate` applies. The code predictor (5 layers) sees per frame the
talker's state and codes 0 to 14, and predicts code i at position i with its head i - 1. In both stacks layer 0 is the
input, layer i the residual stream after block i; the last one comes normed out of the released code.

* Prompts and codes come from the released `generate_voice_design` or `generate_custom_voice`, stopped before audio is
  made. Of max_new_tokens = N the release makes N - 1 frames; `max_frames` counts frames.
* States come from teacher forcing, one forward over prompt and frames: the state that produced frame k stands at
  position P - 1 + k (P the prompt's length). `generate` keeps all states of all steps, so nothing is read from it.

An instruction stands before the prompt as a prefix. The input of every frame is then the same under any instruction,
and a contrast of instructions is exactly 0 in layer 0. Source: qwen-tts 0.1.1 (modeling_qwen3_tts.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codecprobe.codecs import qwen3_talker_compat as compat
from codecprobe.codecs.precision import exact_float32
from codecprobe.talker_files import folder_of, why_deaf
from probecore.devices import device_of
from probecore.errors import DesignError, InputError
from probecore.provenance import digest_of_files, versions
from probecore.seeds import seed_for

FIRST_WITHOUT_END = 2  # frames in which generate lets no speech end (min_new_tokens)


@dataclass(frozen=True)
class TalkerInfo:
    """What a talker is: kind (custom_voice, voice_design), size as released (1b7, 0b6), layers, entries per code."""

    source: str
    kind: str
    size: str
    n_layers: int
    n_predictor_layers: int
    n_codes: int
    n_entries: int
    weights_hash: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """What `generate` gives the talker: prefill (1, P, width), text to come (1, n, width), padding (1, 1, width)."""

    prefill: Tensor
    trailing: Tensor
    padding: Tensor


@dataclass(frozen=True)
class TalkerStates:
    """Residual states of every frame: talker, layers + 1 of (frames, width); predictor, of (frames, 15, its width)."""

    talker: tuple[Tensor, ...]
    predictor: tuple[Tensor, ...]


def open_talker(model: str | Path, device: str = "auto") -> "Talker":
    """Open and certify a Qwen3-TTS model (CustomVoice or VoiceDesign) from a folder or by hub name.

    Raises `MissingExtraError` without qwen-tts, `InputError` when it cannot be had, `DesignError` for a Base model,
    `CertificateError` when it is not what it must be.
    """
    folder, source = folder_of(model)
    config = compat.read_config(folder)
    if config.get("tts_model_type") not in ("custom_voice", "voice_design"):
        raise DesignError(f"{source}: {why_deaf(config)}: give Qwen3-TTS CustomVoice or VoiceDesign, 1.7B")
    tts = compat.load_tts(folder, device_of(device))
    files = [folder / "config.json", *folder.glob("*.safetensors")]
    return Talker(tts, source=source, weights_hash=digest_of_files(files))


class Talker:
    """An opened model; `certificate` holds what was checked (`codecprobe.talker_certificate`)."""

    def __init__(self, tts: Any, *, source: str, weights_hash: str) -> None:  # noqa: ANN401
        from codecprobe.talker_certificate import certify

        self.tts, self.model, self.talker = tts, tts.model, tts.model.talker
        config, found = self.talker.config, versions()
        self.info = TalkerInfo(
            source=source,
            kind=self.model.tts_model_type,
            size=self.model.tts_model_size,
            n_layers=config.num_hidden_layers,
            n_predictor_layers=self.talker.code_predictor.config.num_hidden_layers,
            n_codes=config.num_code_groups,
            n_entries=config.vocab_size - 1024,
            weights_hash=weights_hash,
            versions={name: found[name] for name in ("qwen-tts", "transformers", "torch")},
        )
        self.certificate: Mapping[str, Any] = certify(self)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        where: torch.device = next(self.model.parameters()).device
        return where

    @property
    def deaf(self) -> str:
        """Why this model never sees an instruction; empty where it does."""
        return why_deaf({"tts_model_type": self.info.kind, "tts_model_size": self.info.size})

    @property
    def speakers(self) -> tuple[str, ...]:
        """The voices a CustomVoice model has; none for VoiceDesign."""
        return tuple(sorted(self.tts.get_supported_speakers() or ())) if self.info.kind == "custom_voice" else ()

    def prompt(self, text: str, instruction: str, *, language: str = "English", speaker: str | None = None) -> Prompt:
        """Return what `generate` would give the talker for this text and instruction (an empty one is none)."""
        found = self._released(text, instruction, language, speaker, stop="prompt")
        return Prompt(found["inputs_embeds"], found["trailing_text_hidden"], found["tts_pad_embed"])

    def generate(
        self,
        text: str,
        instruction: str,
        *,
        max_frames: int,
        seed: int = 0,
        language: str = "English",
        speaker: str | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> NDArray[np.int64]:
        """Return codes (frames, 16) of the released generation, at most `max_frames`.

        settings : those of the released call (do_sample, temperature, ...); by default what the model's
        generation_config.json says, which samples. Seeded by `seed`, text and instruction.
        """
        codes, _ = self.generate_with_states(text, instruction, max_frames, seed, language, speaker, **settings)
        return codes

    def generate_with_states(
        self,
        text: str,
        instruction: str,
        max_frames: int,
        seed: int,
        language: str = "English",
        speaker: str | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> tuple[NDArray[np.int64], Tensor]:
        """Return codes (frames, 16) and the normed states (frames, width) that `generate` itself had: for checks."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed_for(seed, "frames", text, instruction))
            found = self._released(
                text, instruction, language, speaker, stop="codes", max_new_tokens=max_frames + 1, **settings
            )
        return found["codes"].cpu().numpy().astype(np.int64), found["hidden"]

    def states(self, prompt: Prompt, codes: NDArray[np.int64]) -> TalkerStates:
        """Return the states that predict each frame of `codes` (frames, 16) after this prompt: one forward a stack."""
        index = torch.tensor(codes, dtype=torch.long, device=self.device)
        n, n_codes = index.shape
        with exact_float32(self.device):
            text = torch.cat(
                [prompt.trailing[:, :n], prompt.padding.expand(-1, max(0, n - prompt.trailing.shape[1]), -1)], 1
            )
            embedded = [self._embedding(i)(index[:, i]) for i in range(n_codes)]
            inputs = torch.cat([prompt.prefill, torch.stack(embedded, dim=1).sum(dim=1)[None] + text], dim=1)
            nested = self._forward(inputs).hidden_states[0]  # nested: (states, codes)
            first = prompt.prefill.shape[1] - 1
            talker = tuple(state[0, first : first + n].clone() for state in nested)
            sequence = torch.stack([talker[-1], *embedded[:-1]], dim=1)
            predictor = self._predict(sequence)
        return TalkerStates(talker, tuple(state[:, 1:].clone() for state in predictor))

    def read_talker(self, layer: int, states: Tensor) -> Tensor:
        """Return the logits (rows, ids) of talker states: final norm, except for the last layer, which has it; head."""
        with exact_float32(self.device):
            normed = states if layer == self.info.n_layers else self.talker.model.norm(states)
            logits: Tensor = self.talker.codec_head(normed)
        return logits

    def read_predictor(self, layer: int, states: Tensor) -> Tensor:
        """Return the logits (rows, 15, entries) of predictor states (rows, 15, width), each code with its own head."""
        predictor = self.talker.code_predictor
        with exact_float32(self.device):
            normed = states if layer == self.info.n_predictor_layers else predictor.model.norm(states)
            return torch.stack([head(normed[:, i]) for i, head in enumerate(predictor.lm_head)], dim=1)

    def allowed(self, n_frames: int) -> Tensor:
        """Return which ids `generate` lets be said, (frames, ids) bool: codes, and from the third frame on the end."""
        mask = torch.zeros(n_frames, self.talker.config.vocab_size, dtype=torch.bool, device=self.device)
        mask[:, : self.info.n_entries] = True
        mask[FIRST_WITHOUT_END:, self.talker.config.codec_eos_token_id] = True
        return mask

    def n_tokens(self, instruction: str) -> int:
        """Return how many positions an instruction takes before the prompt."""
        return int(self.tts._tokenize_texts([self.tts._build_instruct_text(instruction)])[0].shape[1])

    def _forward(self, inputs: Tensor) -> Any:  # noqa: ANN401
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        return self.talker(inputs_embeds=inputs, attention_mask=mask, output_hidden_states=True, use_cache=False)

    def _predict(self, sequence: Tensor) -> tuple[Tensor, ...]:
        """Run the code predictor over (frames, 16, talker width); return its states, input first, last one normed."""
        predictor = self.talker.code_predictor
        inputs = predictor.small_to_mtp_projection(sequence)
        found = predictor.model(inputs_embeds=inputs, output_hidden_states=True, use_cache=False).hidden_states
        return tuple(found)

    def _embedding(self, code: int) -> Any:  # noqa: ANN401
        if code == 0:
            return self.talker.get_input_embeddings()
        return self.talker.code_predictor.get_input_embeddings()[code - 1]

    def _released(
        self,
        text: str,
        instruction: str,
        language: str,
        speaker: str | None,
        *,
        stop: str,
        **settings: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Call the released method; stop where the talker starts ("prompt") or where audio would be made ("codes")."""
        if not text.strip():
            raise InputError("a text to speak must not be empty: give --text some words")
        found: dict[str, Any] = {}
        talk, whole = self.talker.generate, self.model.generate

        def at_prompt(**keywords: Any) -> Any:  # noqa: ANN401
            found.update(keywords)
            if stop == "prompt":
                raise _Stop
            return talk(**keywords)

        def at_codes(*args: Any, **keywords: Any) -> None:  # noqa: ANN401
            codes, hidden = whole(*args, **keywords)
            found.update(codes=codes[0], hidden=hidden[0])
            raise _Stop

        given: dict[str, Any] = {"text": text, "instruct": instruction, "language": language}
        call = self.tts.generate_voice_design
        if self.info.kind == "custom_voice":
            call, given["speaker"] = self.tts.generate_custom_voice, speaker or self.speakers[0]
        self.talker.generate, self.model.generate = at_prompt, at_codes
        try:
            with compat.silence(), exact_float32(self.device):
                call(**given, **settings)
        except _Stop:
            pass
        except ValueError as error:  # a language or speaker this model does not have
            raise InputError(f"{self.info.source}: {str(error).splitlines()[0]}") from error
        finally:
            del self.talker.generate, self.model.generate
        return found


class _Stop(Exception):
    """Ends a released call where there is enough."""
