"""Tokens are selected by what they stand for: roles, matches and generated tokens, in padded batches as alone."""

import numpy as np
import pytest
import torch
from zoo import PROMPTS, TEMPLATE, opened, tiny, tokenizer

from lmprobe import capture, generate, wrap_model
from lmprobe.interventions import ProjectOut, intervened
from lmprobe.selectors import Selector, message_spans, selector
from probecore import InputError

pytestmark = pytest.mark.transformers

CLOSE = 2e-5
"""As in test_capture: rounding is 1e-6 to 5e-6 here, a state at a wrong position is off by 0.1 and more."""
TALK = [
    {"role": "user", "content": "w1 w2 <assistant> w3"},
    {"role": "assistant", "content": "w3 w4"},
    {"role": "user", "content": "  w5 user "},
]
"""A dialogue whose messages hold words of the template: a search for roles in the text would be led astray."""


@pytest.fixture(scope="module")
def chat():
    return wrap_model(tiny("llama"), tokenizer(TEMPLATE), name="chat")


def every(lm, prompt, layer="block 1"):
    return capture(lm, [prompt], at="all", layers=layer, deterministic=True).values(layer)


def test_roles_are_what_messages_say_and_nothing_of_the_template(chat):
    """The text, by hand: <s> <user> w1 w2 <assistant> w3 <assistant> w3 w4 <user> w5 user <assistant>."""
    states = every(chat, TALK)
    assert len(states) == 13
    for role, places in {"user": [2, 3, 4, 5, 10, 11], "assistant": [7, 8]}.items():
        acts = capture(chat, [TALK], at=f"role:{role}", layers="block 1", deterministic=True)
        assert np.array_equal(acts.values("block 1"), states[places])
        assert acts.items == tuple(f"prompt 0 token {k}" for k in places)
        last = capture(chat, [TALK, "w1"], at="last role:user", layers="block 1")
        np.testing.assert_allclose(last.values("block 1")[0], states[11], atol=CLOSE)
    mean = capture(chat, [TALK], at="mean role:assistant", layers="block 1", deterministic=True).values("block 1")
    np.testing.assert_allclose(mean[0], states[[7, 8]].mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="prompt 1 has no token of role 'assistant'"):
        capture(chat, [TALK, "w1"], at="role:assistant")


def test_a_system_message_is_a_role_and_a_plain_text_is_the_users(chat):
    acts = capture(chat, ["w1 w2"], at="role:system", system="w9", layers="embed")
    assert acts.items == ("prompt 0 token 2",)
    plain = opened("llama")
    assert capture(plain, ["w1 w2"], at="role:user", layers="embed").items == tuple(
        f"prompt 0 token {k}" for k in (1, 2)
    )


def test_a_template_that_changes_messages_is_refused():
    lm = wrap_model(tiny("llama"), tokenizer("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"))
    with pytest.raises(InputError, match="it changes them: select tokens with regex"):
        message_spans(lm, "w1 w2")


@pytest.mark.parametrize(
    ("pattern", "tokens"),
    [("w2", [2, 4]), ("2 w3", [2, 3]), (r"w\d(?!\d)", [1, 3]), ("[^ ]+", [1, 2, 3, 4]), ("4$", [4]), (" ", [])],
)
def test_matches_select_the_tokens_they_touch(pattern, tokens):
    """Token 0 is the begin token, which stands for no character; a match of the space between words touches none."""
    lm = opened("llama")
    if not tokens:
        with pytest.raises(InputError, match="prompt 0 has no token of regex ' '"):
            capture(lm, ["w1 w22 w3 w24"], at=f"regex:{pattern}", layers="embed")
        return
    acts = capture(lm, ["w1 w22 w3 w24"], at=f"regex:{pattern}", layers="embed")
    assert acts.items == tuple(f"prompt 0 token {k}" for k in tokens)
    ids = lm.format("w1 w22 w3 w24")
    table = lm.model.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(acts.values("embed"), table[[ids[k] for k in tokens]])


@pytest.mark.parametrize("text", ["", "middle", "last role", "mean first", "regex:(", "role:"])
def test_what_is_no_selector_is_refused(text):
    with pytest.raises(InputError, match="at must"):
        selector(text)


def test_selectors_read_back_as_they_are_written():
    for text in ("last", "mean without first", "all generated", "last role:user", "mean regex: a|b"):
        assert str(selector(text)) == text
    assert selector("generated") == Selector("all", "generated") and selector("prompt") == selector("last")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_generated_tokens_are_those_of_one_pass_over_the_finished_text(name):
    """Traps 17 and 18: with cache and left padding, last token included, as one forward of the whole text."""
    lm = opened(name)
    for at in ("all generated", "last generated", "mean generated"):
        acts = capture(lm, PROMPTS, at=at, max_new_tokens=6, layers=["block 1", "mlp 2"])
        text = generate(lm, PROMPTS, max_new_tokens=6, layers=())
        place = 0
        for prompt, tokens in zip(text.prompts, text.tokens, strict=True):
            whole = capture(lm, [[*prompt, *tokens]], at="all", layers=["block 1", "mlp 2"])
            for layer in acts.layers:
                states = whole.values(layer)[len(prompt) :]
                if at == "mean generated":
                    states = states.mean(axis=0, keepdims=True)
                elif at == "last generated":
                    states = states[-1:]
                np.testing.assert_allclose(acts.values(layer)[place : place + len(states)], states, atol=10 * CLOSE)
            place += len(states)
        assert place == acts.n_items


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_generated_tokens_have_the_same_states_with_and_without_a_cache(name):
    lm = opened(name)
    options = dict(max_new_tokens=5, layers=(), step_layers=["embed", "block 2", "attention 1"])
    ours, theirs = (generate(lm, PROMPTS, use_cache=cached, **options) for cached in (True, False))
    assert ours.tokens == theirs.tokens
    for at in ("all generated", "mean generated"):
        one, other = ours.step_activations(at), theirs.step_activations(at)
        assert one.items == other.items and one.layers == ("embed", "attention 1", "block 2")
        for layer in one.layers:
            np.testing.assert_allclose(one.values(layer), other.values(layer), atol=10 * CLOSE)
    with pytest.raises(InputError, match="must select generated tokens"):
        ours.step_activations("last")
    with pytest.raises(InputError, match="no states of generated tokens were kept"):
        generate(lm, PROMPTS, max_new_tokens=1).step_activations()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_sublayers_add_up_to_the_block(name):
    """What a block adds is what its sub-layers add: equal up to the rounding of two float32 additions, 4 units in the
    last place of numbers below 64."""
    lm = opened(name)
    acts = capture(lm, PROMPTS, at="mean", layers=["embed", "attention", "mlp", "block 0"], deterministic=True)
    assert acts.layers[:4] == ("embed", "attention 0", "mlp 0", "block 0") and "block 1" not in acts.layers
    total = sum(acts.values(layer).astype(np.float64) for layer in ("embed", "attention 0", "mlp 0"))
    np.testing.assert_allclose(total, acts.values("block 0"), atol=4 * 64 * 6e-8)
    assert np.abs(acts.values("attention 0")).max() > 0.01


def test_what_is_installed_at_the_model_stands_in_the_record():
    lm = opened("llama")
    plain = capture(lm, PROMPTS, layers=["attention 0"])
    assert "interventions" not in plain.info
    direction = np.eye(64)[0]
    with intervened(lm, ProjectOut(direction, at="block 0")):
        acts = capture(lm, PROMPTS, layers=["block 0", "mlp 1"])
        written = generate(lm, PROMPTS, max_new_tokens=2)
    assert len(acts.info["interventions"]) == 1 and acts.info["interventions"][0].startswith("ProjectOut(")
    assert written.info["interventions"] == acts.info["interventions"]
    assert np.abs(acts.values("block 0")[:, 0]).max() < 1e-5
    assert "interventions" not in capture(lm, PROMPTS).info


def test_rows_of_ids_have_no_roles():
    lm = opened("llama")
    with pytest.raises(InputError, match="needs a prompt's text; got token ids"):
        capture(lm, [[1, 8, 9]], at="role:user")
    assert torch.is_grad_enabled()
