"""Opening a model: folders and errors, templates and begin tokens, fingerprints; nothing on standard output."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors
from zoo import PROMPTS, TEMPLATE, S, opened, tiny, tokenizer

from lmprobe import capture, generate, loading, open_model, wrap_model
from lmprobe.fingerprint import weights_hash
from probecore import InputError

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as save_pretrained writes it."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny("llama").save_pretrained(path)
    tokenizer(TEMPLATE).save_pretrained(path)
    return path


def test_a_folder_opens_and_is_the_model_that_was_saved(folder, capfd):
    lm = open_model(folder, device="cpu", quiet=True)
    assert capfd.readouterr().out == ""
    assert lm.name == "tiny-llama" and not lm.model.training
    assert str(folder.parent) not in json.dumps(dict(lm.info)) + json.dumps(lm.certificate.to_json())
    saved, memory = capture(lm, PROMPTS, template="raw"), capture(opened("llama"), PROMPTS)
    assert all(np.array_equal(saved.values(layer), memory.values(layer)) for layer in lm.layers)
    assert lm.info["weights_hash"] == opened("llama").info["weights_hash"]
    assert lm.info["parameters"] == sum(p.numel() for p in lm.model.parameters())
    assert set(lm.info["versions"]) == {"python", "torch", "transformers"}


def test_a_model_that_is_open_is_taken_as_it_is_and_a_folder_is_opened(folder):
    lm = opened("llama")
    assert loading.opened(lm, device="cpu", dtype="bfloat16") is lm
    read = loading.opened(folder, device="cpu", dtype="bfloat16", quiet=True)
    assert read.name == "tiny-llama"
    assert read.info["dtype"] == "bfloat16"


def test_the_hash_is_of_weights_not_of_files(folder, tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = open_model(tmp_path, device="cpu", quiet=True)
    assert sharded.info["weights_hash"] == open_model(folder, device="cpu", quiet=True).info["weights_hash"]
    assert sharded.info["tokenizer_hash"] == opened("llama").info["tokenizer_hash"]
    assert sharded.info["template_hash"] is None
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] += 1e-6
    assert weights_hash(model) != sharded.info["weights_hash"]
    assert weights_hash(tiny("llama").bfloat16()) != weights_hash(tiny("llama"))


def test_tied_weights_are_hashed():
    tied = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=1))
    assert tied.lm_head.weight is tied.transformer.wte.weight
    before = weights_hash(tied)
    assert before == weights_hash(tied)
    with torch.no_grad():
        tied.lm_head.weight[0, 0] += 1
    assert weights_hash(tied) != before


def test_dtype_is_that_of_the_checkpoint_unless_asked(tmp_path):
    tiny("llama").bfloat16().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert open_model(tmp_path, device="cpu", quiet=True).info["dtype"] == "bfloat16"
    for dtype in ("float32", torch.float32, "torch.float32"):
        assert open_model(tmp_path, device="cpu", dtype=dtype, quiet=True).dtype == torch.float32
    with pytest.raises(InputError, match=r"dtype must be float32, .*; got 'int8'"):
        open_model(tmp_path, device="cpu", dtype="int8", quiet=True)


def test_an_in_memory_tokenizer_without_a_path_is_accepted():
    """Trap 27, and the tokenizer is left as it was."""
    tok = tokenizer()
    tok.padding_side, before = "right", (len(tok), tok.pad_token, tok.padding_side)
    lm = wrap_model(tiny("gpt2"), tok)
    generate(lm, PROMPTS, max_new_tokens=2)
    assert (len(tok), tok.pad_token, tok.padding_side) == before and lm.name == "GPT2LMHeadModel"


def test_a_tokenizer_without_pad_token_is_left_without():
    tok = tokenizer()
    tok.pad_token = None
    lm = wrap_model(tiny("gpt2"), tok)
    assert lm.pad_id == tok.eos_token_id and tok.pad_token is None
    run, usual = (generate(model, PROMPTS, max_new_tokens=3) for model in (lm, opened("gpt2")))
    assert run.tokens == usual.tokens
    np.testing.assert_allclose(run.entropy, usual.entropy, atol=1e-5)


def test_a_pad_token_outside_the_embedding_is_not_used():
    tok = tokenizer()
    tok.add_special_tokens({"pad_token": "<new pad>"})
    assert tok.pad_token_id == 128
    lm = wrap_model(tiny("llama"), tok)
    assert lm.pad_id == tok.eos_token_id
    assert len(generate(lm, PROMPTS, max_new_tokens=2).tokens) == 4


def test_one_begin_token_with_and_without_template():
    """Trap 9: the template writes a begin token, the tokenizer would add another."""
    lm = wrap_model(tiny("llama"), tokenizer(TEMPLATE))
    begin = lm.tokenizer.bos_token_id
    chat, raw, own = lm.format("w1 w2"), lm.format("w1 w2", template="raw"), lm.format("<s> w1", template="raw")
    assert [row.count(begin) for row in (chat, raw, own)] == [1, 1, 1]
    assert lm.tokenizer.decode(chat) == "<s> <user> w1 w2 <assistant>"
    tokenized = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "w1 w2"}], add_generation_prompt=True, return_dict=False
    )
    assert chat == tokenized and raw == [begin, 8, 9]
    assert wrap_model(tiny("llama"), tokenizer(begin=False)).format("w1 w2") == [8, 9]
    ends_too = tokenizer(TEMPLATE)
    ends_too.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert wrap_model(tiny("llama"), ends_too).format("w1 w2") == chat  # the template says where a text ends


def test_chat_messages_and_systems():
    lm = wrap_model(tiny("llama"), tokenizer(TEMPLATE))
    messages = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    assert lm.tokenizer.decode(lm.format(messages)) == "<s> <user> w1 <assistant> w2 <user> w3 <assistant>"
    assert lm.tokenizer.decode(lm.format("w1", system="w5")) == "<s> <system> w5 <user> w1 <assistant>"
    assert lm.format([5, 6, 7]) == lm.format(np.asarray([5, 6, 7])) == [5, 6, 7]
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}hi"
    lm = wrap_model(tiny("llama"), tokenizer(strict))
    with pytest.raises(InputError, match=r"must accept roles \['system', 'user'\]; it says: System role not supported"):
        lm.format("w1", system="w5")


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "a prompt must hold text; got an empty one"),
        ("  ", {}, "a prompt must hold text"),
        ([], {}, "a prompt must hold text"),
        ("w1", dict(template="chat"), "the tokenizer of llama has none: take 'raw'"),
        ("w1", dict(system="w2"), "need a chat template; llama has none"),
        ([{"role": "user", "content": "w1"}], {}, "need a chat template; llama has none"),
        ("w1", dict(template="llama"), "template must be one of auto, chat, raw"),
        ([5, 500], {}, r"token ids must lie in \[0, 128\); got 500: model and tokenizer do not belong together"),
        ([5, -1], {}, r"token ids must lie in \[0, 128\); got -1"),
    ],
)
def test_prompts_that_cannot_be_used(prompt, options, message):
    with pytest.raises(InputError, match=message):
        opened("llama").format(prompt, **options)


def test_a_prompt_list_must_be_a_list():
    for wrong in ("w1 w2", []):
        with pytest.raises(InputError, match="prompts must be a list of at least 1 prompt"):
            opened("llama").format_all(wrong)
    with pytest.raises(InputError, match=r"must fit into the 128 tokens of llama; prompts 1 have 200: shorten them"):
        opened("llama").format_all(["w1", [5] * 200])


def test_errors_say_what_to_do(folder, tmp_path, capfd):
    """One line each: the rule, the value met, the next step."""

    def message(*args, **options):
        with pytest.raises(InputError) as caught:
            open_model(*args, device="cpu", quiet=True, **options)
        text = str(caught.value)
        assert "\n" not in text and len(text) < 420
        return text

    assert "there is no folder './nowhere'" in message("./nowhere")
    assert "there is no folder" in message(str(tmp_path / "nowhere"))
    assert "must hold config.json" in message(tmp_path)
    offline = message("some-org/some-model")
    assert offline.startswith("the configuration of some-org/some-model must be in the cache or on the network")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))
    assert "transformers must know the architecture" in message(tmp_path)

    bare = tmp_path / "bare"
    tiny("llama").save_pretrained(bare)
    assert "bare must come with a tokenizer" in message(bare)

    seq2seq = tmp_path / "seq2seq"
    transformers.T5Config(vocab_size=32, d_model=8, num_layers=1, num_heads=1).save_pretrained(seq2seq)
    tokenizer().save_pretrained(seq2seq)
    assert "it is an encoder-decoder (t5): open a decoder-only model" in message(seq2seq)

    vision = tmp_path / "vision"
    transformers.ViTConfig(hidden_size=8).save_pretrained(vision)
    tokenizer().save_pretrained(vision)
    assert "vision must be a causal language model" in message(vision)

    empty = tmp_path / "empty"
    tiny("llama").config.save_pretrained(empty)
    tokenizer().save_pretrained(empty)
    assert "the weights of empty could not be loaded" in message(empty)
    assert "device must be auto, cpu" in _message(folder, device="gpu")
    if not torch.cuda.is_available():
        assert "device cuda is not there" in _message(folder, device="cuda")
    assert capfd.readouterr().out == ""


class GatedRepoError(Exception):
    """Named as the hub client names it."""


class RepositoryNotFoundError(Exception):
    """Named as the hub client names it."""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (GatedRepoError(), "org/name is gated on the hub: accept its licence there and log in"),
        (RepositoryNotFoundError(), "the hub must have org/name; it has no such model or revision"),
        (TimeoutError(), "must be in the cache or on the network; neither answers"),
    ],
)
def test_answers_of_the_hub(monkeypatch, answer, message):
    def model_info(*args, **options):
        raise answer

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    assert message in _message("org/name", device="cpu")


def test_a_hub_name_is_pinned_to_one_commit(monkeypatch, folder):
    """The commit the hub gives is what all three parts are loaded at, and what results carry."""
    asked = []

    def from_folder(load):
        def loaded(source, options):
            asked.append((source, options["revision"], options["local_files_only"]))
            return load(str(folder), {k: v for k, v in options.items() if k != "revision"})

        return loaded

    commit = types.SimpleNamespace(sha="c0ffee")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, revision, timeout: commit)
    for part in ("_config", "_tokenizer", "_weights"):
        monkeypatch.setattr(loading, part, from_folder(getattr(loading, part)))
    lm = open_model("org/name", revision="v1", device="cpu", quiet=True)
    assert asked == [("org/name", "c0ffee", False)] * 3
    assert lm.name == "org/name" and lm.info["revision"] == "c0ffee"


def _message(*args, **options):
    with pytest.raises(InputError) as caught:
        open_model(*args, **options)
    return str(caught.value)


def test_a_checkpoint_with_holes_is_refused(tmp_path):
    """Transformers fills what is missing with random numbers and only warns."""
    model = tiny("llama")
    state = {key: value for key, value in model.state_dict().items() if "layers.1.mlp.up_proj" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"1 weights are missing .*layers\.1\.mlp\.up_proj.* would be random"):
        open_model(tmp_path, device="cpu", quiet=True)


def test_a_classifier_is_no_language_model(tmp_path):
    """Its backbone would load, its head would be random."""
    transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**S)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lm_head.weight.* would be random"):
        open_model(tmp_path, device="cpu", quiet=True)


def test_only_language_models_are_wrapped():
    config = transformers.LlamaConfig(**S)
    for wrong in (torch.nn.Linear(2, 2), "gpt2", None):
        with pytest.raises(InputError, match="a model must be a transformers model; got"):
            wrap_model(wrong, tokenizer())
    for wrong in (transformers.LlamaModel(config), transformers.LlamaForSequenceClassification(config)):
        with pytest.raises(InputError, match="a model must be a causal language model"):
            wrap_model(wrong, tokenizer())


def test_end_tokens_are_those_of_config_and_tokenizer():
    model = tiny("llama")
    model.generation_config.eos_token_id = [2, 40]
    tok = tokenizer()
    tok.eos_token = "<assistant>"
    assert wrap_model(model, tok).stop_ids == (2, 5, 40)


def test_importing_lmprobe_does_not_import_torch():
    code = "import sys, lmprobe; dir(lmprobe); print(any(m in sys.modules for m in ('torch', 'transformers')))"
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (root, root / "shared", root / "cli")))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout.strip() == "False"
