"""The claims about the talker: a tiny one of 28 layers with a planted style layer, and one that takes no style."""

from functools import partial
from types import SimpleNamespace

import pytest
from tiny_talker import build_tiny_talker, plant_style

from codecprobe import talker_lens
from codecprobe.claim_parts import NO_MODEL, lens_part
from codecprobe.notes_claims import CLAIMS, LENS
from probecore.claims import claim_row, part_of
from probecore.verdicts import NOT_DECIDED, SUPPORTED

pytestmark = pytest.mark.transformers
RUN = SimpleNamespace(seed=0, device="cpu", quiet=True)
LOUD = "SPEAK IN A SAD, SLOW AND HEAVY VOICE"  # the plant reacts to capitals


def verdicts(model, style=LOUD):
    part = part_of(lambda run: lens_part(run, model, style), RUN)
    return [claim_row(claim, part) for claim in CLAIMS if claim.part == LENS]


def test_a_style_layer_planted_in_the_middle_supports_both_claims(tmp_path, monkeypatch) -> None:
    """Block 15 writes layer 16 and nothing erases it; before it the effect is 0."""
    quick = partial(talker_lens.style_lens, texts=("the bus stops.", "it is noon.", "we go."), max_frames=3)
    monkeypatch.setattr(talker_lens, "style_lens", quick)
    early, peak = verdicts(build_tiny_talker(tmp_path / "talker", layers=28, edit=plant_style(block=15)))
    assert (early["value"], peak["value"]) == (0, 16)
    assert (early["verdict"], peak["verdict"]) == (SUPPORTED, SUPPORTED)


def test_a_model_that_drops_instructions_leaves_the_claims_open_with_that_reason(tmp_path) -> None:
    rows = verdicts(build_tiny_talker(tmp_path / "small", kind="custom_voice", size="0b6"))
    assert {row["verdict"] for row in rows} == {NOT_DECIDED}
    assert all("drops the instruction" in row["why"] for row in rows)


def test_without_a_model_the_reason_is_the_option_to_give() -> None:
    assert {row["why"] for row in verdicts(None)} == {NO_MODEL}
