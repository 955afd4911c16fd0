"""What is checked of a talker when it is opened.

Conventions. One short text is generated greedily (no repetition penalty) through the released call and then teacher
forced. `forcing_error` is the largest difference of a normed state, relative to the largest state: the two ways round
differently, by some 1e-6 in float32. A code may differ from the first choice of the lens only where the two best
logits lie closer than what that error can turn round; `code_agreement` counts all.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codecprobe.codecs import qwen3_compat
from codecprobe.codecs.precision import exact_float32
from probecore.errors import CertificateError

if TYPE_CHECKING:
    from codecprobe.talker import Talker

TEXT, FRAMES = "Good morning.", 8
INSTRUCTIONS = ("Speak normally.", "Whisper, as if someone were asleep next door.")
FORCING_TOLERANCE = 1e-3  # a position that is off by one misses by about 1
NEAR_TIE = 1e-2  # of the largest logit: closer than this, rounding may turn a choice round


def certify(talker: "Talker") -> dict[str, Any]:
    """Return the certificate; raise `CertificateError` naming the first fact that does not hold."""
    plain: dict[str, Any] = {"do_sample": False, "subtalker_dosample": False, "repetition_penalty": 1.0}
    codes, hidden = talker.generate_with_states(TEXT, INSTRUCTIONS[0], FRAMES, 0, **plain)
    if not len(codes):
        raise CertificateError(f"{talker.info.source}: the model must speak; it gave no frame: do not use it here")
    prompt = talker.prompt(TEXT, INSTRUCTIONS[0])
    states = talker.states(prompt, codes)
    error = float((states.talker[-1] - hidden).abs().max() / hidden.abs().max())
    index = torch.tensor(codes, device=talker.device)
    said = talker.read_talker(talker.info.n_layers, states.talker[-1]).masked_fill(
        ~talker.allowed(len(codes)), -torch.inf
    )
    first, first_wrong = _agreement(said, index[:, 0])
    others, others_wrong = _agreement(
        talker.read_predictor(talker.info.n_predictor_layers, states.predictor[-1]), index[:, 1:]
    )
    facts: dict[str, Any] = {
        "device": talker.device.type,
        "dtype": _dtype(talker.model),
        "rope_frequencies_equal_formula": _rope_holds(talker),
        "one_token_roles": _roles_hold(talker),
        "lens_of_last_layer_equals_logits": _last_layer_holds(talker, prompt.prefill),
        "frames": len(codes),
        "forcing_error": error,
        "code_agreement": first,
        "predictor_agreement": others,
        "instruction_reaches_model": _hears(talker),
    }
    required = {
        "all weights must be float32": facts["dtype"] == "float32",
        "rotary frequencies must equal theta^(-2i/d)": facts["rope_frequencies_equal_formula"],
        "the words of the prompt's roles must be one token each": facts["one_token_roles"],
        "the lens of the last layer must equal the logits": facts["lens_of_last_layer_equals_logits"],
        "teacher forcing must give the states of generate": error <= FORCING_TOLERANCE,
        "the talker's lens must give code 0 of generate": not first_wrong,
        "the predictor's lens must give codes 1-15 of generate": not others_wrong,
        "an instruction must reach the model as its kind says": facts["instruction_reaches_model"]
        is not bool(talker.deaf),
    }
    failed = [rule for rule, holds in required.items() if not holds]
    if failed:
        raise CertificateError(f"{talker.info.source}: {failed[0]}; got {facts}: do not use these weights here")
    return facts


def _agreement(logits: Tensor, codes: Tensor) -> tuple[float, int]:
    """Return the share of codes that are first choice, and how many are not although no near tie excuses them."""
    best, own = logits.max(dim=-1), logits.gather(-1, codes[..., None])[..., 0]
    reach = NEAR_TIE * logits.masked_fill(logits.isinf(), 0).abs().amax(dim=-1)
    return float((best.indices == codes).double().mean()), int((best.values - own > reach).sum())


def _last_layer_holds(talker: "Talker", inputs: Tensor) -> bool:
    """Hold the lens against the model's own logits bit for bit; the norm applied twice would show."""
    with exact_float32(talker.device):
        out = talker._forward(inputs)
    return torch.equal(talker.read_talker(talker.info.n_layers, out.hidden_states[0][-1]), out.logits)


def _hears(talker: "Talker") -> bool:
    first, second = (talker.prompt(TEXT, instruction).prefill for instruction in INSTRUCTIONS)
    return first.shape != second.shape or not torch.equal(first, second)


def _roles_hold(talker: "Talker") -> bool:
    """See that generate's cuts of the prompt, 3 tokens before the text and 5 after it, fall where they must."""
    before, after = (talker.tts._tokenize_texts([words])[0] for words in (_BEFORE, _AFTER))
    whole = talker.tts._tokenize_texts([talker.tts._build_assistant_text(TEXT)])[0]
    return (before.shape[1], after.shape[1]) == (3, 5) and bool(
        torch.equal(whole[:, :3], before) and torch.equal(whole[:, -5:], after)
    )


_BEFORE, _AFTER = "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n"


def _rope_holds(talker: "Talker") -> bool:
    rotary = [talker.talker.model.rotary_emb, talker.talker.code_predictor.model.rotary_emb]
    return all(
        torch.equal(one.inv_freq.cpu(), qwen3_compat.rope_frequencies(one.config, len(one.inv_freq))) for one in rotary
    )


def _dtype(model: torch.nn.Module) -> str:
    tensors = (*model.parameters(), *model.buffers())
    return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}))
