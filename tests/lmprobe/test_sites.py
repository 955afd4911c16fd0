"""Blocks and final norm are found from the module tree, named, and can be named by hand."""

import pytest
import torch
import transformers
from torch import nn
from zoo import KNOWN, S, opened, tiny, tokenizer

from lmprobe import wrap_model
from lmprobe.sites import find_sites, residual_of, rows_of, unwrap
from probecore import CertificateError, InputError

pytestmark = pytest.mark.transformers

WHERE = {
    "gpt2": ("transformer.h", "transformer.ln_f"),
    "mpt": ("transformer.blocks", "transformer.norm_f"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "opt": ("model.decoder.layers", "model.decoder.final_layer_norm"),
    "opt_350m": ("model.decoder.layers", None),
    "mamba": ("backbone.layers", "backbone.norm_f"),
    "lfm2": ("model.layers", "model.embedding_norm"),
    "phi": ("model.layers", "model.final_layernorm"),
    "llama": ("model.layers", "model.norm"),
    "gemma3n_text": ("model.layers", "model.norm"),
}


def test_the_zoo_is_wide():
    assert len(KNOWN) >= 40


@pytest.mark.parametrize("name", WHERE)
def test_found_where_they_are(name):
    sites = opened(name).sites
    assert (sites.blocks_path, sites.norm_path) == WHERE[name]
    assert sites.layers == ("embed", "block 0", "block 1", "block 2")


def test_names_are_returned_in_the_order_of_the_forward_pass():
    sites = opened("llama").sites
    assert sites.select(["final", 2, "embed", "block 0"]) == ("embed", "block 0", "block 2", "final")
    assert sites.select("block 1") == ("block 1",)
    assert sites.select([]) == ()
    assert "final" not in sites.select("all")


@pytest.mark.parametrize("layers", ["block 3", "last", [3], [-1], [True]])
def test_unknown_names_are_refused(layers):
    with pytest.raises(InputError, match=r"no layer .*; this model has embed, block 0 to block 2 and final"):
        opened("llama").sites.select(layers)


def test_a_model_without_final_norm_has_no_layer_final():
    with pytest.raises(InputError, match=r"no final norm"):
        opened("opt_350m").sites.select("final")


def test_overrides_name_modules():
    model = tiny("llama")
    assert find_sites(model, "model.layers", "model.norm") == find_sites(model)
    with pytest.raises(InputError, match=r"blocks must name a module; 'model.blocks' does not exist"):
        find_sites(model, "model.blocks")
    with pytest.raises(InputError, match=r"must name a ModuleList of blocks; 'model.norm' is a LlamaRMSNorm"):
        find_sites(model, "model.norm")
    with pytest.raises(InputError, match=r"final_norm must name a module"):
        find_sites(model, None, "model.no_such")


def test_a_model_without_a_block_list_is_refused_with_the_way_out():
    model = tiny("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(CertificateError, match=r"ModuleList of 7 blocks.*model.layers \(3\): name it with blocks="):
        wrap_model(model, tokenizer())


def test_the_text_stack_is_taken_before_another_of_equal_length():
    """A vision tower of the same depth, standing higher in the tree, must not be taken for the decoder."""
    model = tiny("llama")
    model.tower = nn.ModuleList(nn.Linear(64, 512) for _ in range(3))  # shallower and larger than model.layers
    assert find_sites(model).blocks_path == "model.layers"


def test_a_vision_language_wrapper_is_read_at_its_text_stack():
    """Gemma 3 with a vision tower of as many blocks as the decoder, opened as a causal language model."""
    tower = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28)
    config = transformers.Gemma3Config(
        text_config=dict(S, head_dim=16, sliding_window=8),
        vision_config=dict(tower, patch_size=14),
        mm_tokens_per_image=4,
        image_token_index=100,
    )
    lm = wrap_model(transformers.AutoModelForCausalLM.from_config(config), tokenizer())
    assert "vision" not in lm.sites.blocks_path and lm.certificate.check("taps").gap == 0
    assert lm.certificate.holds("read-out")


def test_several_residual_streams_are_laid_side_by_side_and_back():
    hidden = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # copies, batch, time, width
    rows = rows_of(hidden)
    assert rows.shape == (3, 4, 10)
    assert torch.equal(rows[1, 2], torch.cat([hidden[0, 1, 2], hidden[1, 1, 2]]))
    assert torch.equal(residual_of(rows, 2), hidden)
    assert rows_of(hidden[0]) is not None and torch.equal(residual_of(hidden[0], 1), hidden[0])
    with pytest.raises(CertificateError, match=r"3 or 4 axes"):
        rows_of(hidden[0, 0])


def test_block_outputs_are_unwrapped():
    state = torch.zeros(1, 2, 3)
    assert unwrap(state) is state and unwrap((state, None)) is state
    with pytest.raises(CertificateError, match=r"got dict"):
        unwrap({"hidden_states": state})
