"""Encoders open for capture and probing: states are transformers' own, and what an encoder cannot do is refused."""

import numpy as np
import pytest
import torch
import transformers
from zoo import ENDS, PROMPTS, VOCABULARY, tiny, tokenizer

from lmprobe import capture, generate, open_model, read_out, score, wrap_model
from lmprobe.encoders import is_encoder, is_encoder_config
from lmprobe.inputs import forward_arguments, pad
from probecore import CertificateError, InputError

pytestmark = pytest.mark.transformers

BERT = dict(
    vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
    max_position_embeddings=130, **ENDS,
)  # fmt: skip
DISTIL = dict(vocab_size=VOCABULARY, dim=64, n_layers=3, n_heads=4, hidden_dim=96, max_position_embeddings=130, **ENDS)
MODERN = dict(BERT, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=8)
KINDS = {
    "bert": ("Bert", BERT),
    "roberta": ("Roberta", BERT),
    "distilbert": ("DistilBert", DISTIL),
    "modernbert": ("ModernBert", MODERN),
    "electra": ("Electra", dict(BERT, embedding_size=32)),
    "deberta-v2": ("DebertaV2", BERT),
}
CLOSE = 2e-5
"""As in test_capture: rounding is 1e-6 to 5e-6 here, a shifted position or a visible pad moves a state by 0.1."""


def tiny_encoder(kind, head="Model"):
    """Return a random encoder of 3 blocks with jittered gains, the same weights at every call."""
    name, arguments = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**arguments)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}{head}")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 if parameter.ndim == 1 else 3)
                if parameter.ndim == 1:
                    parameter.add_(0.05 * torch.randn_like(parameter))
            for module in model.modules():  # a padding row is zero in every checkpoint
                if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0
    return model


@pytest.fixture(scope="module", params=KINDS)
def encoder(request):
    return wrap_model(tiny_encoder(request.param), tokenizer(), name=request.param)


def test_states_are_transformers_own_bit_for_bit(encoder):
    """The reference is given the ids alone: no mask, no position ids. That is the trap of RoBERTa, whose positions
    start at the pad token's id + 1: positions counted from 0 are taken without an error and are wrong."""
    acts = capture(encoder, PROMPTS, at="all", deterministic=True)
    start = 0
    for prompt in PROMPTS:
        ids = torch.tensor([encoder.format(prompt)])
        with torch.no_grad():
            states = encoder.model(input_ids=ids, output_hidden_states=True).hidden_states
        rows = slice(start, start + ids.shape[1])
        start = rows.stop
        assert len(states) == 4
        pairs = list(zip(acts.layers, states, strict=True))
        for layer, state in pairs if encoder.name != "modernbert" else pairs[:-1]:  # 5.x: last entry after the norm
            assert np.array_equal(acts.values(layer)[rows], state[0].numpy()), layer
    assert start == acts.n_items


def test_a_batch_changes_nothing_but_rounding(encoder):
    alone, batch = (capture(encoder, PROMPTS, at="all", deterministic=one) for one in (True, False))
    for layer in encoder.layers:
        np.testing.assert_allclose(batch.values(layer), alone.values(layer), atol=CLOSE, rtol=CLOSE)


def test_the_certificate_says_what_does_not_apply(encoder):
    certificate = encoder.certificate
    assert certificate.holds("taps") and certificate.holds("right padding") and encoder.is_encoder
    for name in ("read-out", "causal", "cache", "left padding"):
        assert certificate.check(name).holds is None and "not applicable" in str(certificate.check(name))
    assert 0 < certificate.noise_floor < 1e-3 and certificate.facts["position_ids"] is False
    assert encoder.stop_ids == () and encoder.info["encoder"] is True
    assert (encoder.sites.norm_path is not None) == (encoder.name == "modernbert")
    assert encoder.context == (130 - 1 if encoder.name == "roberta" else 130)


def test_what_an_encoder_cannot_do_is_refused(encoder):
    for refused in (lambda: generate(encoder, PROMPTS), lambda: score(encoder, PROMPTS, "w1 w2")):
        with pytest.raises(CertificateError, match=r"'causal'.*not applicable: an encoder reads the whole text"):
            refused()
    with pytest.raises(CertificateError, match=r"'read-out'.*not applicable"):
        read_out(encoder, torch.zeros(1, 64))


def test_states_see_the_whole_text():
    """The same first token has other states in another text: a state of an encoder is one of the whole prompt."""
    lm = wrap_model(tiny_encoder("bert"), tokenizer())
    acts = capture(lm, ["w1 w2 w3", "w1 w2 w4"], at="first", deterministic=True)
    assert np.array_equal(*acts.values("embed")) and not np.allclose(*acts.values("block 0"), atol=0.01)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_folder_opens_and_is_the_same_encoder_whatever_its_head(kind, tmp_path, capfd):
    """Of a masked language model the encoder is opened; a pooler that the checkpoint lacks makes no difference."""
    masked = tiny_encoder(kind, "ForMaskedLM")
    folders = [tmp_path / "masked", tmp_path / "bare"]
    for model, folder in zip((masked, masked.base_model), folders, strict=True):
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    opened = [open_model(folder, device="cpu", quiet=True) for folder in folders]
    assert capfd.readouterr().out == ""
    assert {lm.info["weights_hash"] for lm in opened} == {opened[0].info["weights_hash"]}
    ours, theirs, memory = (capture(lm, PROMPTS, at="mean") for lm in (*opened, wrap_model(masked, tokenizer())))
    for layer in ours.layers:
        assert np.array_equal(ours.values(layer), theirs.values(layer))
        assert np.array_equal(ours.values(layer), memory.values(layer))


def test_an_encoder_with_holes_is_refused(tmp_path):
    model = tiny_encoder("bert")
    state = {key: value for key, value in model.state_dict().items() if "layer.1.output.dense.weight" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"1 weights are missing .*layer\.1\.output\.dense"):
        open_model(tmp_path, device="cpu", quiet=True)


def test_what_counts_as_an_encoder():
    assert is_encoder_config(transformers.BertConfig()) and not is_encoder_config(
        transformers.BertConfig(is_decoder=True)
    )
    assert not is_encoder_config(transformers.LlamaConfig()) and not is_encoder_config(transformers.T5Config())
    assert is_encoder(tiny_encoder("bert")) and not is_encoder(tiny("llama"))
    config = transformers.BertConfig(**BERT)
    assert not is_encoder(transformers.BertForSequenceClassification(config))
    with pytest.raises(InputError, match="or an encoder of the BERT family; got a BertForSequenceClassification"):
        wrap_model(transformers.BertForSequenceClassification(config), tokenizer())


def test_positions_are_left_to_the_encoder():
    model = tiny_encoder("roberta")
    arguments = forward_arguments(model, *pad([[5, 6, 7]], 0, "right"))
    assert "position_ids" not in arguments and "use_cache" not in arguments
    with torch.no_grad():
        wrong = model(**arguments, position_ids=torch.arange(3)[None]).last_hidden_state
        right = model(**arguments).last_hidden_state
    assert (wrong - right).abs().max() > 0.1
