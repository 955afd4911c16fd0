"""The tokenizer of the organisms: one token a word of their language, single characters for every other word.

A real Hugging Face fast tokenizer with a chat template. Any text of ASCII characters has a tokenization without
unknown tokens; accents are stripped, what is left outside ASCII becomes `<unk>`.
"""

import string
from collections.abc import Sequence
from typing import Any

from lmprobe.organisms.grammar import END, vocabulary

PAD, UNKNOWN, BEGIN = "<|pad|>", "<unk>", "<|bos|>"
SYSTEM, USER, ASSISTANT, TURN_END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = (PAD, UNKNOWN, BEGIN, END, SYSTEM, USER, ASSISTANT, TURN_END)
CHAT_TEMPLATE = (
    "{{ '" + BEGIN + "' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '" + TURN_END + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def build_tokenizer(words: Sequence[str] | None = None) -> Any:  # noqa: ANN401 (a transformers tokenizer)
    """Return the tokenizer (a `transformers.PreTrainedTokenizerFast`) with its chat template.

    words : those that are one token each; the language of `grammar` by default.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = string.ascii_letters + string.digits + string.punctuation
    pieces = [*SPECIAL, *(vocabulary() if words is None else words), *characters, *(f"##{c}" for c in characters)]
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocab=ids, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=True)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, ids[BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, TURN_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
