"""Coverage: which tensors an edit of weights reaches in a model, and what is out of its reach and why.

Conventions. A row stands for the tensors of one name in all blocks ("model.layers.*.mlp.down_proj.weight"); experts of
a list are one name, too. `reach` is "exact" where the edit equals the hook on every write, "nullspace" where a norm
stands between the tensor and the stream, "refused" for what no edit of weights reaches; `reason` says why.
"""

from __future__ import annotations

import re

from lmprobe.edit_report import Mode
from lmprobe.writers import Writer, Writers
from probecore.results import Row

COVERAGE = ("sites", "tensors", "layout", "count", "shape", "parameters", "reach", "reason")
NO_P = "a list of tensors: nothing is estimated"


def coverage_rows(writers: Writers) -> list[Row]:
    """Return one row per name of a tensor, in the order of the forward pass, then one per gap."""
    groups: dict[tuple[str, str], list[Writer]] = {}
    for writer in writers.writers:
        groups.setdefault((writer.site.split(" ")[0], re.sub(r"\.\d+(?=\.)", ".*", writer.name)), []).append(writer)
    rows: list[Row] = []
    for (kind, name), found in groups.items():
        shapes = {tuple(writer.parameter.shape) for writer in found}
        normed = any(writer.gain is not None for writer in found)
        elsewhere = writers.read_elsewhere and kind == "embed"
        why = "a norm stands behind it" if normed else "what it gives is read outside the stream, too"
        blocks = [writer.block for writer in found if writer.block is not None]
        rows.append({
            "sites": kind if not blocks else f"{kind} {min(blocks)}-{max(blocks)}", "tensors": name,
            "layout": found[0].layout, "count": len(found),
            "shape": " or ".join(" x ".join(map(str, shape)) for shape in sorted(shapes)),
            "parameters": sum(writer.parameter.numel() for writer in found),
            "reach": "nullspace" if normed or elsewhere else "exact", "reason": why if normed or elsewhere else "",
            "p_value": None, "p_note": NO_P,
        })  # fmt: skip
    rows += [
        {"sites": gap.site, "tensors": None, "layout": None, "count": None, "shape": None, "parameters": None,
         "reach": "refused", "reason": gap.reason, "p_value": None, "p_note": NO_P}
        for gap in writers.gaps
    ]  # fmt: skip
    return rows


def best_mode(writers: Writers) -> Mode:
    """Return "exact" where an edit of all writers can equal the hook, else "nullspace"."""
    return "nullspace" if writers.norms or writers.read_elsewhere else "exact"


def coverage_notes(writers: Writers) -> list[str]:
    """Return in words what an edit of all writers would be."""
    notes = []
    if writers.gaps:
        notes.append(
            "an edit of these weights is refused: not all that writes into the residual stream is in its reach (rows "
            "'refused'); remove the direction with hooks at 'input' and 'block' sites instead"
        )
    elif best_mode(writers) == "nullspace":
        notes.append(
            "an edit of weights cannot equal the hook here, because a norm stands behind sub-layers or a table is read "
            "elsewhere: mode nullspace takes the direction out of the stream, and logits differ from the hook's"
        )
    else:
        notes.append("every write is in reach: the edited model equals the hook on every write, to rounding")
    if writers.tied:
        notes.append("the output head shares the token table: it gets its own copy, and the configuration says so")
    return notes
