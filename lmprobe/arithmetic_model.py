"""Small transformers on modular arithmetic as Hugging Face models, so that every command of lmprobe opens them.

Conventions. The function is that of `lmprobe.grokking`, a pre- or post-norm transformer with learned positions, biases
and a head of its own, which is OPT's with a bias in the head. Logits of tokens that are no number are -100: they are no
answers. Positions from the fifth on were never trained and are zero; a longer context only lets a model be checked.

`register` makes transformers know the class; `open_model` calls it.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch

MODEL_TYPE = "modular_arithmetic"
CONTEXT = 32
NO_ANSWER = -100.0


@cache
def register() -> tuple[type, type]:
    """Tell transformers of the model and return its configuration and model class."""
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM, OPTConfig, OPTForCausalLM

    class ModularArithmeticConfig(OPTConfig):  # type: ignore[misc]
        """OPT's configuration under a name of its own."""

        model_type = MODEL_TYPE

    class ModularArithmeticForCausalLM(OPTForCausalLM):  # type: ignore[misc]
        """OPT with a bias in the head."""

        config_class = ModularArithmeticConfig

        def __init__(self, config: Any) -> None:  # noqa: ANN401
            super().__init__(config)
            self.lm_head = nn.Linear(config.word_embed_proj_dim, config.vocab_size, bias=True)
            self.post_init()

    AutoConfig.register(MODEL_TYPE, ModularArithmeticConfig)
    AutoModelForCausalLM.register(ModularArithmeticConfig, ModularArithmeticForCausalLM)
    return ModularArithmeticConfig, ModularArithmeticForCausalLM


def hub_model(
    parameters: dict[str, torch.Tensor], *, p: int, names: tuple[str, ...], heads: int, norm: str, activation: str
) -> Any:  # noqa: ANN401 (a transformers model)
    """Return the Hugging Face model of one member.

    parameters : by name, as `lmprobe.grokking.model.views` gives them, without the axis of members.
    names : text of each token. Logits of the first p tokens are those of the member.
    """
    config_class, model_class = register()
    width, layers = parameters["embed"].shape[1], sum(name.endswith("qkv.weight") for name in parameters)
    config = config_class(
        vocab_size=len(names),
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT,
        do_layer_norm_before=norm == "pre",
        activation_function=activation,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():  # what is drawn here is overwritten
        model = model_class(config).to(parameters["embed"].dtype)
    missing, unexpected = model.load_state_dict(_named_as_opt(parameters, p, len(names), width, layers), strict=False)
    if missing or unexpected:
        raise RuntimeError(f"weights without a place: {missing} {unexpected}")
    return model.eval()


def hub_tokenizer(names: tuple[str, ...]) -> Any:  # noqa: ANN401 (a transformers tokenizer)
    """Return the tokenizer: words apart by spaces, one token each.

    A word that is no token gets an id that the model does not have, so that a prompt with it is refused.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate((*names, "<unk>"))}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", model_max_length=CONTEXT)


def save_hub_model(model: Any, tokenizer: Any, folder: str | Path) -> Path:  # noqa: ANN401
    """Write model and tokenizer as a folder that `open_model` takes."""
    place = Path(folder)
    model.save_pretrained(place, safe_serialization=True)
    tokenizer.save_pretrained(place)
    return place


def _named_as_opt(
    parameters: dict[str, torch.Tensor], p: int, vocabulary: int, width: int, layers: int
) -> dict[str, torch.Tensor]:
    """Return the weights under OPT's names; its linear maps are (outputs, inputs), its positions begin at row 2."""
    w = parameters
    positions = torch.zeros(CONTEXT + 2, width, dtype=w["position"].dtype)
    positions[2 : 2 + len(w["position"])] = w["position"]
    head = torch.zeros(vocabulary, width, dtype=w["position"].dtype)
    bias = torch.full((vocabulary,), NO_ANSWER, dtype=w["position"].dtype)
    head[:p], bias[:p] = w["head.weight"].T, w["head.bias"]
    found = {
        "model.decoder.embed_tokens.weight": w["embed"],
        "model.decoder.embed_positions.weight": positions,
        "lm_head.weight": head,
        "lm_head.bias": bias,
    }
    if "norm.gain" in w:
        found |= {"model.decoder.final_layer_norm.weight": w["norm.gain"]}
        found |= {"model.decoder.final_layer_norm.bias": w["norm.bias"]}
    for i in range(layers):
        place = f"model.decoder.layers.{i}."
        thirds = [f"self_attn.{name}_proj" for name in "qkv"]
        weights, biases = w[f"{i}.qkv.weight"].T.split(width), w[f"{i}.qkv.bias"].split(width)
        for name, weight, of in zip(thirds, weights, biases, strict=True):
            found |= {f"{place}{name}.weight": weight, f"{place}{name}.bias": of}
        for theirs, ours in (("self_attn.out_proj", "out"), ("fc1", "up"), ("fc2", "down")):
            found |= {
                f"{place}{theirs}.weight": w[f"{i}.{ours}.weight"].T,
                f"{place}{theirs}.bias": w[f"{i}.{ours}.bias"],
            }
        for theirs, ours in (("self_attn_layer_norm", "norm1"), ("final_layer_norm", "norm2")):
            found |= {f"{place}{theirs}.weight": w[f"{i}.{ours}.gain"], f"{place}{theirs}.bias": w[f"{i}.{ours}.bias"]}
    return {name: value.contiguous() for name, value in found.items()}
