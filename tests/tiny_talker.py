"""A tiny random Qwen3-TTS model (talker, code predictor, codec, text tokenizer), built from the real classes.

config.json is written by hand: 4.57 save_pretrained adds keys that the speaker's configuration rejects, 5.x loses the
talker's rope_scaling. The role names are one token each, because generate() cuts the prompt by position. A tokenizer
that 5.x saved does not load in 4.57: a folder belongs to the version that wrote it.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_qwen import ENTRIES, build_tiny_qwen

from codecprobe.codecs import qwen3_compat as compat
from codecprobe.codecs import qwen3_talker_compat as talker_compat

CHAT = ["<|im_start|>", "<|im_end|>"]
TTS = ["<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"]
GENERATION = {
    **{"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.9, "top_p": 1.0, "top_k": 50},
    **{"subtalker_dosample": True, "subtalker_temperature": 0.9, "subtalker_top_p": 1.0, "subtalker_top_k": 50},
    "max_new_tokens": 8192,
}


def build_tiny_talker(
    folder: Path,
    kind: str = "voice_design",
    size: str = "1b7",
    seed: int = 0,
    layers: int = 4,
    edit: Callable[[Any, Any], None] | None = None,
) -> Path:
    """Write a model into `folder`; `edit` receives the model and the text tokenizer before they are written."""
    compat.import_qwen_tts()
    if compat._is_version_5():
        talker_compat._adapt_talker()
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _text_tokenizer()
    (folder / "config.json").write_text(json.dumps(_config(tokenizer, kind, size, layers), indent=1))
    torch.manual_seed(seed)
    with talker_compat.silence():
        model = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        for weights in model.talker.parameters():  # the released initialisation makes every logit about 0
            if weights.ndim == 2:
                torch.nn.init.normal_(weights, std=0.3)
        if edit is not None:
            edit(model, tokenizer)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    build_tiny_qwen(folder / "speech_tokenizer")
    return folder


def plant_style(block: int, erase: int | None = None, predictor: int | None = None) -> Callable[[Any, Any], None]:
    """Return an edit after which block `block` of the talker alone lets a frame see the words before it.

    Every other block adds nothing. Capital letters share one direction: an instruction in capitals is a style, one in
    small letters is not. Block `block` writes into the last 8 of 32 features and reads the others; block `erase` reads
    the same and takes away again what was written (nearly: the scale of its input has changed). `predictor`: the one
    block of the code predictor that lets codes see the talker's state.
    """

    def edit(model: Any, tokenizer: Any) -> None:
        layers = model.talker.model.layers
        for layer in layers:
            layer.mlp.down_proj.weight.zero_()
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight[:, 24:] = 0
            layer.self_attn.o_proj.weight[:24] = 0
        if erase is not None:
            layers[erase].self_attn.load_state_dict(layers[block].self_attn.state_dict())
            layers[erase].self_attn.o_proj.weight.neg_()
        for i, layer in enumerate(layers):
            if i not in (block, erase):
                layer.self_attn.o_proj.weight.zero_()
        inner = model.talker.code_predictor.model.layers
        for i, layer in enumerate(inner):
            if predictor is not None and i != predictor:
                layer.self_attn.o_proj.weight.zero_()
        words = model.talker.model.text_embedding.weight
        capitals = [tokenizer.convert_tokens_to_ids(chr(ord("A") + i)) for i in range(26)]
        words[capitals] = torch.randn(words.shape[1]) + 0.1 * torch.randn(26, words.shape[1])

    return edit


def _text_tokenizer() -> Any:
    """Return a byte-level Qwen2 tokenizer without merges."""
    import transformers
    from tokenizers import pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    if compat._is_version_5():
        tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[])
        tokenizer.add_special_tokens({"extra_special_tokens": CHAT})
    else:
        with tempfile.TemporaryDirectory() as name:
            words, merges = Path(name) / "vocab.json", Path(name) / "merges.txt"
            words.write_text(json.dumps(vocabulary))
            merges.write_text("#version: 0.2\n")
            tokenizer = transformers.Qwen2TokenizerFast(vocab_file=str(words), merges_file=str(merges))
        tokenizer.add_special_tokens({"additional_special_tokens": CHAT})
    tokenizer.add_tokens(["assistant", "user", *TTS])
    return tokenizer


def _config(tokenizer: Any, kind: str, size: str, layers: int) -> dict[str, Any]:
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in CHAT + TTS}
    n = ENTRIES
    predictor = {
        **{"model_type": "qwen3_tts_talker_code_predictor", "vocab_size": n, "hidden_size": 24},
        **{"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
        **{"head_dim": 16, "num_code_groups": 16, "rope_theta": 1000000},
    }
    talker = {
        **{"model_type": "qwen3_tts_talker", "vocab_size": n + 1024, "hidden_size": 32, "intermediate_size": 64},
        **{"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
        **{"num_code_groups": 16, "text_hidden_size": 48, "text_vocab_size": len(tokenizer) + 8},
        **{"rope_theta": 1000000, "codec_pad_id": n + 100, "codec_bos_id": n + 101, "codec_eos_token_id": n + 102},
        "rope_scaling": {"mrope_section": [4, 2, 2], "interleaved": True, "rope_type": "default"},
        **{"codec_think_id": n + 106, "codec_nothink_id": n + 107, "codec_think_bos_id": n + 108},
        **{"codec_think_eos_id": n + 109, "codec_language_id": {"english": n + 2, "chinese": n + 7}},
        **{"spk_id": {"ryan": n + 500, "serena": n + 501}, "spk_is_dialect": {"ryan": False, "serena": False}},
        "code_predictor_config": predictor,
    }
    return {
        **{"architectures": ["Qwen3TTSForConditionalGeneration"], "model_type": "qwen3_tts", "talker_config": talker},
        **{"speaker_encoder_config": {"enc_dim": 32, "sample_rate": 24000}},
        **{"tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_size": size, "tts_model_type": kind},
        **{"im_start_token_id": ids["<|im_start|>"], "im_end_token_id": ids["<|im_end|>"]},
        **{"tts_pad_token_id": ids["<tts_pad>"], "tts_bos_token_id": ids["<tts_text_bos>"]},
        "tts_eos_token_id": ids["<tts_text_eod>"],
    }
