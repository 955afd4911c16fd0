"""The tuned lens: it learns a planted map, its file belongs to its model, its loss is one on held-out texts."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from zoo import opened, tokenizer

from lmprobe import lens_rows, wrap_model
from lmprobe.lens import lens
from lmprobe.lens_reading import run_text
from lmprobe.readout import read_out
from lmprobe.tuned_lens import load_tuned_lens, train_tuned_lens
from probecore import DesignError, InputError
from probecore.seeds import generator

pytestmark = pytest.mark.transformers
WIDTH = 32


class Turning(LlamaDecoderLayer):
    """A block that turns the residual stream by a fixed orthogonal matrix."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        return (out[0] @ self.turn, *out[1:]) if isinstance(out, tuple) else out @ self.turn


@pytest.fixture(scope="module")
def turned():
    """A model that says what its embedding says, in another basis: its last block turns the stream."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=128, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
            model.lm_head.weight.mul_(40)
            model.model.embed_tokens.weight.mul_(50)
        last = model.model.layers[2]
        last.__class__ = Turning
        last.register_buffer("turn", torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0], persistent=False)
    return wrap_model(model, tokenizer(), name="turned")


def texts_of(n, name):
    rng = generator(0, name)
    return [" ".join(f"w{i}" for i in rng.integers(0, 121, size=20)) for _ in range(n)]


@pytest.fixture(scope="module")
def trained(turned):
    return train_tuned_lens(turned, texts_of(40, "texts"), steps=300, rate=0.5)


def test_a_planted_map_is_learnt(turned, trained):
    """The plain lens before the turn is nonsense, the turn undoes it: held-out loss falls to a tenth and less."""
    plain, tuned = trained.held_out.mean(axis=-1)
    assert (plain > 0.5).all() and (tuned < 0.1 * plain).all()
    assert trained.held_out.shape == (2, 3, 10)
    _, logits = run_text(turned, turned.format("w1 w2 w3"))
    states, _ = run_text(turned, turned.format("w1 w2 w3"))
    own = read_out(turned, states[-1])
    assert torch.equal(trained.translate(3, states[-1]), states[-1])  # the last layer has no translator
    gap = (torch.softmax(read_out(turned, trained.translate(1, states[1])), -1) - torch.softmax(own, -1)).abs().max()
    assert float(gap) < 0.35
    assert torch.equal(own.argmax(-1), logits.argmax(-1))


def test_the_held_out_loss_is_that_of_held_out_texts(turned, trained):
    """Recomputed from the definition; float32 logits, float64 sums: 1e-5."""
    order = generator(0, "tuned lens", "held out").permutation(40)
    text = list(dict.fromkeys(texts_of(40, "texts")))[order[3]]
    states, logits = run_text(turned, turned.format(text, template="raw"))
    target = torch.log_softmax(logits.double(), -1)
    for kind, given in enumerate((states[1], trained.translate(1, states[1]))):
        said = torch.log_softmax(read_out(turned, given).double(), -1)
        kl = float((target.exp() * (target - said)).sum(-1).mean())
        assert trained.held_out[kind, 1, 3] == pytest.approx(kl, abs=1e-5)


def test_training_starts_at_the_plain_lens_and_repeats(turned):
    """A rate of next to nothing leaves the lens plain; the same seed gives the same bits."""
    still = train_tuned_lens(turned, texts_of(8, "few"), steps=1, rate=1e-12)
    np.testing.assert_allclose(still.held_out[0], still.held_out[1], atol=1e-6)
    one, two = (train_tuned_lens(turned, texts_of(8, "few"), steps=3, seed=s) for s in (1, 1))
    assert torch.equal(one.matrices, two.matrices) and np.array_equal(one.held_out, two.held_out)


def test_the_file_gives_the_same_lens_and_belongs_to_its_model(turned, trained, tmp_path):
    again = load_tuned_lens(trained.save(tmp_path / "lens"))
    assert torch.equal(again.matrices, trained.matrices) and torch.equal(again.biases, trained.biases)
    assert again.info == trained.info and np.array_equal(again.held_out, trained.held_out)
    again.require(turned)
    with pytest.raises(InputError, match="belongs to the weights it was trained on"):
        lens(opened("llama"), prompt="w1", tuned=tmp_path / "lens")
    record = json.loads((tmp_path / "lens" / "tuned_lens.json").read_text())
    (tmp_path / "lens" / "tuned_lens.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(InputError, match="another format"):
        load_tuned_lens(tmp_path / "lens")
    with pytest.raises(InputError, match="holds no tuned lens"):
        load_tuned_lens(tmp_path)


def test_the_result_shows_both_lenses_and_the_loss(turned, tmp_path):
    result = lens(turned, prompt="w1 w2 w3", tune=texts_of(12, "t"), steps=20, save=tmp_path / "out")
    rows = [row for row in result.rows if row.get("metric") == lens_rows.HELD_OUT]
    assert [row["layer"] for row in rows] == list(turned.layers[:-1])
    assert all(row["value"] == pytest.approx(row["first"] - row["second"]) and row["n_texts"] == 3 for row in rows)
    shown = {(row["lens"], row["layer"]): row for row in result.shown}
    assert len(shown) == 2 * len(turned.layers) and "held_out_kl_nats" in result.columns
    for row in rows:
        assert shown["tuned", row["layer"]]["held_out_kl_nats"] == pytest.approx(row["first"])
        assert shown["plain", row["layer"]]["held_out_kl_nats"] == pytest.approx(row["second"])
    assert shown["tuned", "block 2"]["held_out_kl_nats"] is None
    assert {"map turned 1", "map turned 1 tuned", "held-out loss"} <= set(result.tables)
    loaded = lens(turned, prompt="w1 w2 w3", tuned=tmp_path / "out")
    assert loaded.rows == result.rows


def test_too_few_texts_are_refused(turned):
    with pytest.raises(DesignError, match="at least 4 different texts"):
        train_tuned_lens(turned, ["w1", "w1", "w2", "w3"])
