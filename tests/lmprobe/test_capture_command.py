"""`lmprobe capture`: prompts of any file, labels from its columns, folders that open again, one JSON object."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from zoo import TEMPLATE, opened, tiny, tokenizer

from lmprobe.capture_run import capture_prompts, column_labels
from lmprobe.prompt_table import read_table
from probecli.lm import main
from probecore import InputError
from probecore.store import load_activations

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny("llama").save_pretrained(place)
    tokenizer(TEMPLATE).save_pretrained(place)
    return place


@pytest.fixture
def csv_file(tmp_path):
    lines = ["id,prompt,kind,family,score,note"]
    lines += [f"p{i},w{i} w{2 * i} w3,{'ab'[i % 2]},f{i // 4},{i * 0.5},{'x' if i else ''}" for i in range(12)]
    (tmp_path / "prompts.csv").write_text("\n".join(lines))
    return tmp_path / "prompts.csv"


def run(*arguments):
    done = CliRunner().invoke(main, ["capture", *map(str, arguments)])
    return done


def test_a_folder_and_a_csv_become_activations(folder, csv_file, tmp_path):
    done = run("--model", folder, "--prompts", csv_file, "--at", "last", "--out", tmp_path / "acts", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert set(record) == {"kind", "rows", "notes", "provenance"} and record["kind"] == "capture"
    assert [row["layer"] for row in record["rows"]] == ["embed", "block 0", "block 1", "block 2"]
    assert any("column 'note' is no label: 1 of 12" in note for note in record["notes"])
    acts = load_activations(tmp_path / "acts")
    assert acts.items[:2] == ("p0", "p1") and list(acts.groups[:5]) == ["f0"] * 4 + ["f1"]
    assert {name: label.kind for name, label in acts.labels.items()} == {
        "kind": "class", "family": "class", "score": "real"
    }  # fmt: skip
    assert list(acts.label("kind").values[:2]) == ["a", "b"]
    values = acts.values("block 1").astype(np.float64)
    row = record["rows"][2]
    assert row["size"] == pytest.approx(np.sqrt((values**2).mean(axis=1)).mean(), rel=1e-12)
    assert row["largest_coordinate"] == pytest.approx((values**2).sum(axis=0).max() / (values**2).sum(), rel=1e-12)
    assert str(tmp_path) not in done.stdout
    again = run("--model", folder, "--prompts", csv_file, "--at", "last", "--out", tmp_path / "acts", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["rows"] == record["rows"]
    other = run("--model", folder, "--prompts", csv_file, "--at", "first", "--out", tmp_path / "acts")
    assert other.exit_code == 1 and "holds activations of" in other.output


def test_several_models_have_a_folder_each_and_texts_are_kept(tmp_path):
    result = capture_prompts(
        [opened("llama"), opened("gpt2")], read_table("default").take(range(4)), at="last generated", max_new_tokens=3,
        layers=["block 0", "mlp 1"], out=tmp_path,
    )  # fmt: skip
    assert [row["layer"] for row in result.rows] == ["block 0", "mlp 1"] * 2
    for name in ("llama", "gpt2"):
        assert load_activations(tmp_path / name).n_items == 4
    assert len(result.tables["texts"]) == 8 and result.rows[1]["noise_floor"] is None
    memory = capture_prompts(opened("llama"), read_table("default").take(range(4)), at="last generated",
                             max_new_tokens=3)  # fmt: skip
    assert memory.tables["texts"] == result.tables["texts"][:4]
    assert any("nothing was kept" in note for note in memory.notes)


def test_without_a_model_it_runs_on_the_organisms_and_says_so():
    done = run("--quiet", "--layers", "embed")
    assert done.exit_code == 0 and "SYNTHETIC" in done.output and "aligned-100" in done.output


def test_messages_are_prompts_and_their_roles_can_be_captured(folder, tmp_path):
    talks = [
        [{"role": role, "content": said} for role, said in (("user", f"w{i}"), ("assistant", f"w1 w{i}"))]
        for i in range(6)
    ]
    lines = [json.dumps({"messages": talk, "honest": i % 2 == 0}) for i, talk in enumerate(talks)]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    done = run("--model", folder, "--prompts", tmp_path / "talks.jsonl", "--at", "role:assistant", "--out",
               tmp_path / "acts", "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.output
    acts = load_activations(tmp_path / "acts")
    assert acts.n_items == 12 and list(acts.label("honest").values[:4]) == ["True", "True", "False", "False"]
    assert len(set(acts.label("honest").units)) == 6  # a label belongs to the prompt, not to its tokens


def test_columns_that_are_labels():
    table = read_table("default")
    labels, notes = column_labels(table)
    assert set(labels) == {"category", "family"} and notes == []
    with pytest.raises(InputError, match="no column 'nonsense'"):
        table.column("nonsense")


@pytest.mark.parametrize(
    ("text", "why"),
    [("a,b\n1,2\n", "needs a column for the text"), ("text\n\n", "are empty"), ("id,text\nx,w1\nx,w2\n", "repeats x"),
     ('text\n""\n', "every prompt needs a text")],
)  # fmt: skip
def test_files_that_cannot_be_used_are_refused(text, why, tmp_path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=why):
        read_table(str(tmp_path / "p.csv"))
