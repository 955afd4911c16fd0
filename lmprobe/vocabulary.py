"""Vocabulary: token ids of words that are asked for, and how single tokens are written where people read them."""

from collections.abc import Sequence

from lmprobe.models import LanguageModel
from probecore.errors import InputError, shorten

SPACE, BREAK, LONGEST = "\N{OPEN BOX}", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", 14


def single_tokens(lm: LanguageModel, texts: Sequence[str], what: str) -> list[int]:
    """Return the token id of each text.

    what : what the texts are called in errors, for example "a target". Raises `InputError` for a text that is not
    exactly one token, and for repeated ones.
    """
    found = []
    for text in texts:
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == getattr(lm.tokenizer, "unk_token_id", None):
            pieces = lm.tokenizer.convert_ids_to_tokens(ids)
            raise InputError(
                f"{what} must be one token of {lm.name}; {text!r} is {shorten([str(p) for p in pieces]) or 'none'}: "
                "give its first token, with the space before it where the template leaves one"
            )
        found.append(int(ids[0]))
    if len(set(found)) != len(found):
        raise InputError(f"{what} must differ from the others; got {shorten(list(texts))}: leave the repeated ones out")
    return found


def token_labels(lm: LanguageModel, ids: Sequence[int], longest: int = LONGEST) -> list[str]:
    """Return what each token id writes, long tokens cut; spaces, breaks and what cannot be printed are made visible.

    An id that writes nothing by itself (a byte of a character, an id beyond the tokenizer) is shown as its piece, else
    as "#" and its number.
    """
    labels = []
    for i in ids:
        try:
            text = str(lm.tokenizer.decode([int(i)]))
        except (IndexError, KeyError, OverflowError, TypeError, ValueError):
            text = ""
        if not text or "\N{REPLACEMENT CHARACTER}" in text:
            piece = lm.tokenizer.convert_ids_to_tokens(int(i))
            text = str(piece) if piece else f"#{int(i)}"
        marked = text.replace(" ", SPACE).replace("\n", BREAK).replace("\t", "\N{RIGHTWARDS ARROW TO BAR}")
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in marked)
        labels.append(shown if len(shown) <= longest else shown[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}")
    return labels
