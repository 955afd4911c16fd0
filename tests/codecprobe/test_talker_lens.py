"""`codecprobe lens`: a planted style layer is found at that layer, and what cannot be answered is refused."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_talker import build_tiny_talker, plant_style

from codecprobe.instructions import NEUTRALS, TEXTS
from codecprobe.talker import open_talker
from codecprobe.talker_lens import RESOLUTION, _resolved, style_lens
from probecli.codec_lens import lens
from probecore.errors import DesignError, InputError
from probecore.report.html import load_result
from probecore.seeds import generator

pytestmark = pytest.mark.transformers
SPOKEN = ("the bus stops.", "it is noon.", "we go.")
LOUD = "SPEAK IN A SAD, SLOW AND HEAVY VOICE"
QUIET = "speak in a sad, slow and heavy voice"


def planted(folder, **plant):
    return open_talker(build_tiny_talker(folder, layers=6, edit=plant_style(**plant)), "cpu")


def values(result, stack, metric="style effect", key="value"):
    return [row[key] for row in result.rows if row["stack"] == stack and row["metric"] == metric]


def one(result, stack, metric):
    (row,) = [row for row in result.rows if row["stack"] == stack and row["metric"] == metric]
    return row


@pytest.fixture(scope="module")
def middle(tmp_path_factory):
    """A talker whose block 2 alone reacts to an instruction, and whose block 4 takes that away again."""
    return planted(tmp_path_factory.mktemp("planted") / "middle", block=2, erase=4)


@pytest.fixture(scope="module")
def found(middle):
    return style_lens(middle, LOUD, texts=SPOKEN, max_frames=10)


def test_a_style_planted_in_the_middle_peaks_there(found):
    """Block 2 writes layer 3, block 4 erases in layer 5: the effect stands in layers 3 and 4 and peaks at 3."""
    effect, p = values(found, "talker"), values(found, "talker", key="p_adjusted")
    assert effect[:3] == [0, 0, 0] and p[1:3] == [1, 1]
    assert p[3] == p[4] == pytest.approx(1 / len(NEUTRALS)) and p[5] > 0.05
    assert effect[3] == pytest.approx(effect[4], rel=1e-6) and effect[5] < 0.2 * effect[3]
    low, high = (values(found, "talker", key=key)[3] for key in ("ci_low", "null_high"))
    assert low > high  # clear of the neutral instructions
    for metric in ("peak of the effect", "steepest rise"):
        row = one(found, "talker", metric)
        assert (row["value"], row["ci_low"], row["ci_high"]) == (3, 3, 3)


@pytest.mark.parametrize("block", [0, 5])
def test_a_style_planted_first_or_last_is_found_there(tmp_path, block):
    """Nothing erases: the effect stays, so the first of the equal layers is the peak. Same for the code predictor."""
    result = style_lens(planted(tmp_path / "edge", block=block, predictor=1), LOUD, texts=SPOKEN, max_frames=6)
    assert one(result, "talker", "peak of the effect")["value"] == block + 1
    assert one(result, "talker", "steepest rise")["value"] == block + 1
    rise = values(result, "talker", "rise of the effect")
    assert max(abs(value) for i, value in enumerate(rise) if i != block + 1) < 1e-5 < rise[block + 1]
    assert values(result, "code predictor")[:2] == [0, 0]
    assert one(result, "code predictor", "peak of the effect")["value"] == 2


def test_the_same_words_without_the_plant_are_no_style(middle):
    """In small letters the instruction is one more neutral one: no layer is called, and the note says so."""
    result = style_lens(middle, QUIET, texts=SPOKEN, max_frames=10)
    assert min(p for p in values(result, "talker", key="p_adjusted") if p is not None) > 0.05
    rises = [note for note in result.notes if note.startswith("talker: no layer tells the style")]
    assert len(rises) == (one(result, "talker", "peak of the effect")["value"] is not None)


def test_every_row_says_what_it_stands_on(found):
    kinds = {"style effect", "rise of the effect", "style KL", "neutral KL", "entropy", "KL to final"}
    assert {row["metric"] for row in found.rows} == kinds | {
        "rank of final choice", "peak of the effect", "steepest rise"
    }  # fmt: skip
    needed = ("model", "stack", "layer", "metric", "value", "ci_low", "ci_high", "null_low", "null_high", "p_value")
    for row in found.rows:
        assert set(needed) | {"p_adjusted", "n_texts", "n_frames"} <= set(row)
        assert row["model"] == "middle" and row["n_texts"] == 3 and row["n_frames"] == 30
    difference = np.subtract(values(found, "talker", "style KL"), values(found, "talker", "neutral KL"))
    np.testing.assert_allclose(values(found, "talker"), difference, atol=1e-12)
    assert values(found, "talker", "KL to final")[-1] == 0
    assert values(found, "talker", "rank of final choice")[-1] == 1
    assert [len(values(found, stack)) for stack in ("talker", "code predictor")] == [7, 3]
    assert [row["p_note"] for row in found.rows if row["layer"] == 0 and row["metric"] == "style effect"] == [
        "the input of a frame is the same under every instruction: 0 by construction, not a finding"
    ] * 2


def test_the_maps_average_to_the_rows(found):
    """All texts have 10 frames, so the mean over frames, or codes, of a layer is its row."""
    for table, stack in (("talker frames", "talker"), ("predictor codes", "code predictor")):
        for layer, value in enumerate(values(found, stack)):
            cells = [row["effect"] for row in found.records(table) if row["layer"] == layer]
            assert len(cells) == (10 if stack == "talker" else 15)
            assert np.mean(cells) == pytest.approx(value, abs=1e-12)
    assert sorted({row["code"] for row in found.records("predictor codes")}) == list(range(1, 16))


def test_rounding_is_no_effect(middle):
    """Prompts of other lengths round differently: 1e-12 nats before the planted layer count as 0, not as p = .04."""
    raw = np.full((1, 3, 3, 2), 1e-10)
    assert (_resolved(raw) == 0).all()
    assert (_resolved(raw + RESOLUTION) > 0).all()
    codes = middle.generate(SPOKEN[0], NEUTRALS[0], max_frames=5)
    runs = [middle.states(middle.prompt(SPOKEN[0], one), codes) for one in (LOUD, QUIET)]
    gap = (runs[0].talker[2] - runs[1].talker[2]).abs().max()
    assert gap < 1e-4  # nothing but rounding, whatever it is on this machine


def test_the_order_of_neutrals_and_of_texts_changes_nothing(middle, found):
    """Up to float64 sums, as long as the frames are spoken under the same one."""
    rng = generator(0, "order")
    neutrals = [NEUTRALS[0], *rng.permutation(NEUTRALS[1:]).tolist()]
    again = style_lens(middle, LOUD, neutral=neutrals, texts=SPOKEN[::-1], max_frames=10)
    for metric in ("style effect", "rise of the effect"):
        np.testing.assert_allclose(values(again, "talker", metric), values(found, "talker", metric), atol=1e-9)
        assert values(again, "talker", metric, "p_adjusted") == values(found, "talker", metric, "p_adjusted")


def test_the_packaged_instructions_suffice_for_a_p_below_05():
    assert len(set(NEUTRALS)) == len(NEUTRALS) and 1 / len(NEUTRALS) <= 0.05
    assert len(set(TEXTS)) == len(TEXTS) >= 8
    words = ("sad", "angry", "happy", "whisper", "fast", "slow", "loud", "soft", "excited")
    named = [one for one in NEUTRALS if any(f" {word}" in f" {one.lower()}" for word in words)]
    assert named == ["Deliver the line in a typical, even way, neither fast nor slow, neither loud nor soft."]


def test_the_command_prints_json_and_writes_a_report(tmp_path):
    folder = build_tiny_talker(tmp_path / "planted", layers=6, edit=plant_style(2, 4))
    options = ["--model", str(folder), "--style", LOUD, "--frames", "4", "--device", "cpu", "--quiet"]
    options += [part for text in SPOKEN[:2] for part in ("--text", text)]
    options += [part for neutral in NEUTRALS[:4] for part in ("--neutral", neutral)]
    done = CliRunner().invoke(lens, [*options, "--json", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["kind"] == "lens" and record["provenance"]["certificate"]["code_agreement"] == 1.0
    assert record["rows"] == list(load_result(tmp_path / "out").rows)
    assert any("no p can reach 0.05" in note for note in record["notes"])
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert drawn == {
        "style-by-layer", "style-by-predictor-layer", "style-by-frame", "style-by-code", "lens-by-layer"
    }  # fmt: skip


def test_one_text_has_no_interval_and_says_so(middle):
    result = style_lens(middle, LOUD, texts=SPOKEN[:1], neutral=NEUTRALS[:4], max_frames=4)
    row = [row for row in result.rows if row["metric"] == "style effect"][3]
    assert row["ci_low"] is None and "at least 2 texts" in row["ci_note"]


def test_a_model_that_drops_instructions_is_refused_before_it_is_loaded(tmp_path):
    small = build_tiny_talker(tmp_path / "small", kind="custom_voice", size="0b6")
    (small / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(DesignError, match=r"small: the released code drops the instruction of a 0\.6B CustomVoice"):
        style_lens(small, LOUD)
    base = build_tiny_talker(tmp_path / "base", kind="base")
    with pytest.raises(DesignError, match=r"takes no instruction.*give a 1\.7B CustomVoice or VoiceDesign model"):
        style_lens(base, LOUD)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": None}, InputError, "--model is needed, no talker is packaged"),
        ({"style": ""}, InputError, "--style must say how to speak"),
        ({"style": ()}, InputError, "--style must say how to speak"),
        ({"neutral": ("Say it.", "Speak.")}, DesignError, "got 2 --neutral: give at least 3"),
        ({"style": "say  IT normally."}, InputError, "must differ from the others; twice: say it normally."),
        ({"texts": ("", "Hello.")}, InputError, "must not be empty"),
        ({"max_frames": 1}, InputError, "--frames must be an int of at least 2"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        style_lens(**({"model": None, "style": "Whisper."} | settings))


def test_the_front_door_is_the_function_whatever_was_imported_before():
    """A name that is also a module's would be the module as soon as anyone has imported that."""
    import codecprobe
    import codecprobe.talker_lens

    assert codecprobe.style_lens is style_lens
