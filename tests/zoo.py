"""Tiny random models of many architectures, and a tokenizer in memory: what the tests of lmprobe run on.

Norm gains and biases are jittered: with gain 1 and bias 0 many mix-ups (a state before and after a norm) are invisible.
Read-out scales and softcaps are made strong, so that a lens that forgets them fails.
"""

import functools
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lmprobe import LanguageModel, wrap_model

VOCABULARY = 128
S: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
ENDS: dict[str, Any] = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
GPT: dict[str, Any] = dict(vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, n_positions=128, **ENDS)
MOE: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LINEAR: dict[str, Any] = dict(
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16
)
HYBRID: dict[str, Any] = dict(
    S, head_dim=16, shared_expert_intermediate_size=32, layer_types=["linear_attention"] * 2 + ["full_attention"],
    **MOE, **LINEAR,
)  # fmt: skip
HEADS = ("num_attention_heads", *ENDS)
OPT: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=128, word_embed_proj_dim=64, **ENDS,
)  # fmt: skip
SHARED_KV: dict[str, Any] = dict(
    S, head_dim=16, sliding_window=8, hidden_size_per_layer_input=16, vocab_size_per_layer_input=VOCABULARY,
    num_kv_shared_layers=1, layer_types=["sliding_attention", "full_attention", "full_attention"],
)  # fmt: skip
PLAIN = (
    "Llama Mistral Qwen2 Gemma Phi3 Olmo Olmo2 Cohere Granite StableLm Starcoder2 Glm Glm4 Phi Persimmon Nemotron "
    "SmolLM3 Arcee Apertus Ernie4_5"
)

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT),
    "gpt_neo": (
        "GPTNeoConfig",
        dict(vocab_size=VOCABULARY, hidden_size=64, num_layers=3, num_heads=4, max_position_embeddings=128,
             attention_types=[[["global", "local", "global"], 1]], window_size=8, **ENDS),
    ),
    "gptj": ("GPTJConfig", dict(GPT, rotary_dim=8)),
    "gpt_neox": ("GPTNeoXConfig", {k: v for k, v in S.items() if k != "num_key_value_heads"}),
    "opt": ("OPTConfig", OPT),
    "bloom": ("BloomConfig", dict(vocab_size=VOCABULARY, hidden_size=64, n_layer=3, n_head=4, **ENDS)),
    "falcon": ("FalconConfig", {k: S[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", *HEADS)}),
    "mpt": ("MptConfig", dict(vocab_size=VOCABULARY, d_model=64, n_layers=3, n_heads=4, max_seq_len=128, **ENDS)),
    "codegen": ("CodeGenConfig", dict(GPT, rotary_dim=8)),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT),
    **{name.lower(): (f"{name}Config", S) for name in PLAIN.split()},
    "helium": ("HeliumConfig", dict(S, head_dim=16)),
    "qwen3": ("Qwen3Config", dict(S, head_dim=16)),
    "gemma2": ("Gemma2Config", dict(S, head_dim=16, sliding_window=8)),
    "gemma3_text": ("Gemma3TextConfig", dict(S, head_dim=16, sliding_window=8)),
    "cohere2": ("Cohere2Config", dict(S, sliding_window=8)),
    "mixtral": ("MixtralConfig", dict(S, num_local_experts=4)),
    "qwen2_moe": ("Qwen2MoeConfig", dict(S, shared_expert_intermediate_size=32, **MOE)),
    "qwen3_moe": ("Qwen3MoeConfig", dict(S, head_dim=16, **MOE)),
    "gpt_oss": ("GptOssConfig", dict(S, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8)),
    "mamba": ("MambaConfig", dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=3, state_size=8, **ENDS)),
    "qwen3_next": ("Qwen3NextConfig", HYBRID),
    "lfm2": ("Lfm2Config", dict(S, full_attn_idxs=[1])),
    "exaone4": ("Exaone4Config", dict(S, sliding_window=8)),
    "olmo3": ("Olmo3Config", dict(S, sliding_window=8)),
    # layouts on which simple assumptions break: no final norm and another width at the end; several residual streams
    "opt_350m": ("OPTConfig", dict(OPT, word_embed_proj_dim=32, do_layer_norm_before=False)),
    "gemma3n_text": ("Gemma3nTextConfig", dict(SHARED_KV, laurel_rank=8, altup_num_inputs=2)),
    "gemma4_text": ("Gemma4TextConfig", SHARED_KV),
}  # fmt: skip
STRONG: dict[str, dict[str, Any]] = {
    "cohere": dict(logit_scale=0.0625),
    "cohere2": dict(logit_scale=0.0625),
    "granite": dict(logits_scaling=4.0),
    "gemma2": dict(final_logit_softcapping=1.0),
}

KNOWN = [name for name, (config, _) in ARCHITECTURES.items() if hasattr(transformers, config)]
"""Architectures of this file that the installed transformers has."""


def tiny(name: str, jitter: float = 0.05, strength: float = 4.0, sharpen: float = 8.0, **options: Any) -> Any:
    """Return a random model of that architecture with 3 blocks, the same weights at every call.

    strength : factor on the matrices inside the blocks, so that attention moves the residual stream by its own size.
    sharpen : factor on the output head, so that greedy choices are not near ties.
    """
    config_name, arguments = ARCHITECTURES[name]
    config = getattr(transformers, config_name)(**arguments)
    for key, value in STRONG.get(name, {}).items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, **options).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(jitter * torch.randn_like(parameter))
                elif ".0." in key or ".1." in key or ".2." in key:  # inside a block
                    parameter.mul_(1 if name == "mamba" else strength)
            model.get_output_embeddings().weight.mul_(sharpen)
    return model


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
WORDS = [f"w{i}" for i in range(VOCABULARY - 7)]


def tokenizer(template: str | None = None, begin: bool = True) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer of 128 tokens in memory: <pad> <s> </s> <unk> <user> <assistant> <system> w0 ...

    begin : the tokenizer puts the begin token before a text, as Llama's does.
    """
    special = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<system>"]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begin:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
    )  # fmt: skip
    whole.chat_template = template
    return whole


PROMPTS = ["w1 w2 w3", "w9 w4 w77 w30 w8 w21 w5 w60 w11 w2 w14", "w50 w51", "w3 w90 w17 w17 w40 w6"]
"""Prompts of four lengths."""


@functools.cache
def opened(name: str) -> LanguageModel:
    """Return the opened model of an architecture, made once a process; tests leave it unchanged."""
    return wrap_model(tiny(name), tokenizer(), name=name)


def head_of_norm(lm: Any, h: Any) -> Any:
    """Return what Llama's tail makes of a state."""
    return lm.model.get_output_embeddings()(lm.sites.norm(h))


FORMULAS: dict[str, Any] = {
    "llama": head_of_norm,
    "mamba": head_of_norm,
    "gemma2": lambda lm, h: 1.0 * torch.tanh(head_of_norm(lm, h) / 1.0),
    "cohere": lambda lm, h: 0.0625 * head_of_norm(lm, h),
    "granite": lambda lm, h: head_of_norm(lm, h) / 4.0,
    "opt_350m": lambda lm, h: lm.model.lm_head(lm.model.model.decoder.project_out(h)),
}
"""The read-out of some architectures, as their papers and configurations state it."""
