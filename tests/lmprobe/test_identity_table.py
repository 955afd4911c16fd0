"""The identity table as a test: edited weights are the hook, on architectures where that is possible; others refuse.

Tolerances. In float64 every operation rounds by 2^-53 = 1.1e-16 of its size; some thousand roundings of equal sign,
which the two ways do not share, stay below 1e-12 sd of the logits. A norm computes in float32 in some float64 models,
there and in float32 rows the unit is 6e-8 and the bound 1e-4. An edit that misses one writer is off by 0.1 sd or more.
"""

import re

import pytest
import torch
from identity import (
    ABSENT,
    DENSE,
    DOCS,
    EXACT,
    MAJOR,
    REFUSED,
    TABLE,
    build,
    measure,
    projected_reads,
)
from zoo import tokenizer

from lmprobe import ProjectOut, find_writers, intervened, orthogonalize, wrap_model

pytestmark = pytest.mark.transformers

ROWS = [*DENSE, "jamba", "granitemoehybrid", "qwen3_next", "llama4_text", "exaone4", "gemma4_text"]
"""Of the hybrids one of each layout of experts and mixers; `python tests/identity.py` has all."""
REASONS = {
    "bloom": "embed: what enters block 0 is no sum of tables",
    "opt, norm after": "its output is no sum of its input and of what modules inside it return (a norm stands",
}


def documented():
    """Return verdict by architecture, as the page has it for the transformers that is installed."""
    page = DOCS.read_text(encoding="utf-8")
    part = page.partition(f"<!-- transformers {MAJOR} -->")[2].partition(f"<!-- end of transformers {MAJOR} -->")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in part.splitlines() if line.startswith("| ")]
    return {name: verdict for name, verdict in cells if name != "architecture"}


@pytest.mark.parametrize("name", ROWS)
def test_edited_weights_are_the_hook_or_are_refused(name):
    row = measure(name)
    assert row["verdict"] == documented()[name], row
    if row["verdict"] in (ABSENT, REFUSED):
        assert row["verdict"] == ABSENT or REASONS.get(name, "") in row["why"]
        return
    assert row["verdict"] == TABLE[name][2]
    assert row["passed"], row["failures"]
    assert row["leak"] < 1e-5 < 0.5 < row["leak_before"]
    assert row["effect"] > 0.1
    if row["verdict"] == EXACT:
        limit = 1e-12 if name in DENSE else 1e-4
        assert max(row["gap"], row["reads"], row.get("generated", 0.0)) < limit, row
        assert row.get("same", True)
    else:
        assert row["source_gap"] < 1e-4 < 0.1 < row["gap"]
        assert "a norm behind attention 0, mlp 0" in row["why"]


def test_the_page_has_every_row():
    assert list(documented()) == list(TABLE)
    counts = [int(n) for n in re.findall(r"\((\d+) exact, (\d+) nullspace only, (\d+) refused", DOCS.read_text())[0]]
    assert sum(counts) >= 40 and counts[0] >= 20


@pytest.mark.parametrize("name", ["llama, biases", "gpt2", "opt", "gemma"])
def test_the_reads_that_are_projected_say_so_when_a_writer_is_missed(name):
    """The reference can fail: leave out the tables, or the biases, and the gap is of the effect's size."""
    lm = wrap_model(build(name), tokenizer(), name=name)
    r = torch.nn.functional.normalize(
        torch.randn(32, generator=torch.Generator().manual_seed(2), dtype=torch.float64), dim=0
    )
    ids = torch.tensor([[5, 9, 33, 71, 12]])

    def logits():
        with torch.no_grad():
            return lm.model(input_ids=ids).logits

    with projected_reads(lm, r):
        reads = logits()
    with intervened(lm, ProjectOut(r)):
        hooked = logits()
    assert float((reads - hooked).abs().max()) < 1e-12 * float(reads.std())
    sites = [site for site in find_writers(lm).sites if site != "embed"]
    report = orthogonalize(lm, r, at=sites)
    assert report.passed, "it is complete for what was asked"
    assert float((reads - logits()).abs().max()) > 0.05 * float(reads.std())
