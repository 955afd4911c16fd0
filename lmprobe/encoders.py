"""Encoders: bidirectional models of the BERT family, whose states can be captured and probed.

Conventions. An encoder is told by its configuration: a masked language model that is not set up as a decoder. Every
state sees the whole text, so there is no next token, no continuation and no cache; the certificate says "not
applicable" there, and generation is refused. Rows are padded on the right with the model's own pad token, and position
ids are left to the model: RoBERTa counts from the pad token's id + 1, so that positions counted from 0 would be wrong
without an error. Head and pooler are no part of the residual stream, and random where a checkpoint has none: they are
taken away, so that one checkpoint has one hash.
"""

from typing import Any

from torch import nn

from probecore.errors import InputError


def is_encoder_config(config: Any) -> bool:  # noqa: ANN401
    """Tell whether a configuration is that of a bidirectional encoder."""
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    named = any("ForMaskedLM" in name for name in getattr(config, "architectures", None) or ())
    return named or getattr(config, "model_type", None) in MASKED


def is_encoder(model: Any) -> bool:  # noqa: ANN401
    """Tell whether a model in memory is a bidirectional encoder, with a masked-language-model head or bare."""
    generates = hasattr(model, "can_generate") and bool(model.can_generate())
    if generates or not is_encoder_config(getattr(model, "config", None)):
        return False
    name = type(model).__name__
    return name.endswith("Model") or "MaskedLM" in name


def bare_encoder(model: Any) -> Any:  # noqa: ANN401
    """Return the encoder of a model without its head; its pooler is taken away in place."""
    bare = getattr(model, "base_model", model)
    if isinstance(getattr(bare, "pooler", None), nn.Module):
        bare.pooler = None
    return bare


def load_encoder(source: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the bare encoder of a checkpoint; raises `InputError` where weights but the pooler's are missing."""
    from transformers import AutoModel
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of a random pooler, which is taken away
    try:
        model, report = AutoModel.from_pretrained(source, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(level)
    absent = {*report.get("missing_keys", ()), *(str(key) for key in report.get("mismatched_keys", ()))}
    absent = {key for key in absent if not key.startswith("pooler.")}
    if absent:
        raise InputError(
            f"a checkpoint must fill the whole {type(model).__name__}; {len(absent)} weights are missing or of another "
            f"shape ({', '.join(sorted(absent)[:3])}) and would be random: open the encoder's own checkpoint"
        )
    return bare_encoder(model)


def context_of(model: Any) -> int | None:  # noqa: ANN401
    """Return the longest text of an encoder: what its configuration states, less what its position table keeps free.

    RoBERTa's table of 514 positions starts at the pad token's id + 1, which leaves 512.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings") and _table(m)]
    return limit - (tables[0].padding_idx + 1 if tables and tables[0].padding_idx is not None else 0)


def _table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)
