"""The talker against the released code: traps T1 to T11 of nested states, prefixes, heads, masks and missing networks.

All on a tiny random model that goes through the real from_pretrained, so relations are tested, never literal codes.
Tolerance of teacher forcing against generate: float32 sums in another order, 1e-5 of a state of size about 1; a
position that is off by one misses by about 1.
"""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen import ENTRIES
from tiny_talker import build_tiny_talker

from codecprobe.codecs import qwen3_talker_compat as compat
from codecprobe.codecs.precision import exact_float32
from codecprobe.talker import open_talker
from codecprobe.talker_certificate import certify
from codecprobe.talker_files import folder_of, why_deaf
from probecore.errors import CertificateError, DesignError, InputError
from probecore.lens import lens_divergence, logit_lens

pytestmark = pytest.mark.transformers
NOISE = 1e-5
GREEDY = {"do_sample": False, "subtalker_dosample": False, "repetition_penalty": 1.0}
TEXT, STYLE, OTHER = "The bus stops here.", "Whisper.", "Speak angrily, very fast."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_talker(tmp_path_factory.mktemp("talker") / "design")


@pytest.fixture(scope="module")
def talker(folder):
    return open_talker(folder, "cpu")


@pytest.fixture(scope="module")
def custom_folder(tmp_path_factory):
    return build_tiny_talker(tmp_path_factory.mktemp("custom") / "custom", kind="custom_voice")


@pytest.fixture(scope="module")
def greedy(talker):
    """Codes and states of the released greedy generation, and the teacher-forced states."""
    codes, hidden = talker.generate_with_states(TEXT, STYLE, 12, 0, **GREEDY)
    return codes, hidden, talker.states(talker.prompt(TEXT, STYLE), codes)


def test_the_real_loading_path_gives_a_certified_model(talker):
    info = talker.info
    assert (info.kind, info.size, info.n_layers, info.n_predictor_layers) == ("voice_design", "1b7", 4, 2)
    assert (info.n_codes, info.n_entries) == (16, ENTRIES)
    facts = talker.certificate
    assert facts["dtype"] == "float32" and facts["frames"] == 8
    assert facts["code_agreement"] == facts["predictor_agreement"] == 1.0
    assert facts["forcing_error"] < NOISE
    names = ("rope_frequencies_equal_formula", "one_token_roles", "lens_of_last_layer_equals_logits")
    assert all(facts[name] is True for name in (*names, "instruction_reaches_model"))


def test_t1_the_last_state_is_normed_already(talker):
    prefill = talker.prompt(TEXT, STYLE).prefill
    with exact_float32(talker.device):
        out = talker._forward(prefill)
        states, _ = out.hidden_states
    assert len(states) == talker.info.n_layers + 1
    assert torch.equal(talker.read_talker(talker.info.n_layers, states[-1]), out.logits)
    gain = torch.linspace(0.5, 2, len(talker.talker.model.norm.weight))
    talker.talker.model.norm.weight.mul_(gain)  # norm twice cannot be seen where all gains are equal, as when untrained
    try:
        with exact_float32(talker.device):
            out = talker._forward(prefill)
            twice = talker.talker.codec_head(talker.talker.model.norm(out.hidden_states[0][-1]))
        assert torch.equal(talker.read_talker(talker.info.n_layers, out.hidden_states[0][-1]), out.logits)
        assert not torch.allclose(twice, out.logits, atol=1e-3)
    finally:
        talker.talker.model.norm.weight.div_(gain)


def test_t2_the_head_that_generic_tools_ask_for_does_not_exist(talker):
    with pytest.raises(AttributeError):
        talker.talker.get_output_embeddings()
    states = torch.randn(3, talker.talker.config.hidden_size)
    assert talker.read_talker(0, states).shape == (3, ENTRIES + 1024)


def test_t3_left_padding_moves_a_state_by_rounding_only(talker):
    """We never pad; the released batch does, and the last position is then the same up to rounding."""
    alone = talker.prompt(TEXT, STYLE).prefill
    pad = torch.zeros(1, 9, alone.shape[2])
    mask = torch.cat([torch.zeros(1, 9), torch.ones(1, alone.shape[1])], dim=1).long()
    with exact_float32(talker.device):
        padded = talker.talker(
            inputs_embeds=torch.cat([pad, alone], dim=1),
            attention_mask=mask,
            output_hidden_states=True,
            use_cache=False,
        )
        one = talker._forward(alone)
    for a, b in zip(padded.hidden_states[0], one.hidden_states[0], strict=True):
        assert (a[:, -1] - b[:, -1]).abs().max() < 1e-4


def test_t4_ids_that_generate_suppresses_cannot_be_said(talker):
    """All ids from the size of a code book on, except the end of speech, and that not in the first two frames."""
    seen = []
    original = talker.talker._get_logits_processor

    def spy(*args, **keywords):
        processors = original(*args, **keywords)
        kinds = ("SuppressTokens", "MinLength", "MinNewTokensLength")
        kept = type(processors)(p for p in processors if type(p).__name__.startswith(kinds))

        def record(ids, scores, **_):
            seen.append(torch.isfinite(kept(ids, scores.clone()))[0])
            return processors(ids, scores)

        return type(processors)([record])

    talker.talker._get_logits_processor = spy
    try:
        codes = talker.generate(TEXT, STYLE, max_frames=6, **GREEDY)
    finally:
        del talker.talker._get_logits_processor
    mask = talker.allowed(len(codes))
    assert torch.equal(torch.stack(seen[: len(codes)]), mask)
    assert mask.sum(dim=1).tolist() == [ENTRIES, ENTRIES, *[ENTRIES + 1] * (len(codes) - 2)]


def test_t5_t6_teacher_forcing_gives_the_states_and_codes_of_generate(talker, greedy):
    codes, hidden, states = greedy
    assert (states.talker[-1] - hidden).abs().max() < NOISE
    assert (states.talker[-1][1:] - hidden[:-1]).abs().max() > 0.1  # one position off is seen
    logits = talker.read_talker(talker.info.n_layers, states.talker[-1]).masked_fill(
        ~talker.allowed(len(codes)), -torch.inf
    )
    assert logits.argmax(dim=-1).tolist() == codes[:, 0].tolist()
    others = talker.read_predictor(talker.info.n_predictor_layers, states.predictor[-1])
    assert others.argmax(dim=-1).tolist() == codes[:, 1:].tolist()


def test_the_predictor_lens_is_the_released_one(talker, greedy):
    """`forward_finetune` is the release's own logits of codes 1 to 15 for all frames."""
    codes, _, states = greedy
    with exact_float32(talker.device):
        released, _ = talker.talker.forward_sub_talker_finetune(torch.tensor(codes), states.talker[-1])
    np.testing.assert_allclose(
        talker.read_predictor(talker.info.n_predictor_layers, states.predictor[-1]), released, atol=NOISE
    )


def test_t7_instructions_reach_the_model_or_are_refused(talker, custom_folder, tmp_path):
    first, second = (talker.prompt(TEXT, one).prefill for one in (STYLE, OTHER))
    none = talker.prompt(TEXT, "").prefill
    assert none.shape[1] + talker.n_tokens(STYLE) == first.shape[1]
    n = none.shape[1]
    assert torch.equal(first[:, -n:], none) and torch.equal(second[:, -n:], none)  # a prefix, nothing else
    custom = open_talker(custom_folder, "cpu")
    assert custom.deaf == "" and custom.speakers == ("ryan", "serena")
    ryan, serena = (custom.prompt(TEXT, STYLE, speaker=name).prefill for name in custom.speakers)
    assert ryan.shape == serena.shape and not torch.equal(ryan, serena)
    small = open_talker(build_tiny_talker(tmp_path / "small", kind="custom_voice", size="0b6"), "cpu")
    assert torch.equal(small.prompt(TEXT, STYLE).prefill, small.prompt(TEXT, OTHER).prefill)  # dropped without a word
    assert "drops the instruction" in small.deaf and small.certificate["instruction_reaches_model"] is False
    assert "takes no instruction" in why_deaf({"tts_model_type": "base", "tts_model_size": "1b7"})
    with pytest.raises(DesignError, match="a base model of Qwen3-TTS takes no instruction"):
        open_talker(build_tiny_talker(tmp_path / "base", kind="base"), "cpu")


def test_t8_a_contrast_of_instructions_is_exactly_0_at_the_input(talker, greedy):
    codes, _, _ = greedy
    runs = [talker.states(talker.prompt(TEXT, one), codes) for one in (STYLE, OTHER)]
    above = lens_divergence([run.talker for run in runs], talker.read_talker, allowed=talker.allowed(len(codes)))
    below = lens_divergence([run.predictor for run in runs], talker.read_predictor)
    assert (above[0] == 0).all() and (below[0] == 0).all()
    assert above[1:, 0, 1].min() > 1e-6 and below[1:, 0, 1].mean() > 1e-6


def test_t9_frames_are_counted_not_tokens(talker):
    assert [len(talker.generate(TEXT, STYLE, max_frames=n)) for n in (2, 7)] == [2, 7]
    again = talker.generate(TEXT, STYLE, max_frames=7)
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(again, talker.generate(TEXT, STYLE, max_frames=7))
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's randomness is untouched
    assert not np.array_equal(again, talker.generate(TEXT, STYLE, max_frames=7, seed=1))


def test_t10_what_is_read_out_at_once_does_not_grow_with_the_frames(talker):
    """States of generate are never kept: a long clip is forced in one forward and read out in pieces."""
    codes = np.tile(talker.generate(TEXT, STYLE, max_frames=20), (6, 1))
    states = talker.states(talker.prompt(TEXT, STYLE), codes)
    assert states.talker[0].shape[0] == states.predictor[0].shape[0] == 120
    sizes = []

    def counted(layer, rows):
        sizes.append(len(rows))
        return talker.read_predictor(layer, rows)

    found = logit_lens(states.predictor, counted, rows=16)
    assert max(sizes) == 16 and found.entropy.shape == (3, 120, 15)
    assert states.talker[0]._base is None  # no view keeps the whole forward alive


def test_t11_a_folder_and_a_cached_name_need_no_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="not in the local hub cache and the hub cannot be reached") as error:
        open_talker("Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign", "cpu")
    assert "\n" not in str(error.value)
    revision = "0123456789abcdef" + 24 * "0"
    repository = tmp_path / "models--Qwen--Qwen3-TTS-12Hz-1.7B-VoiceDesign"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(folder, repository / "snapshots" / revision)
    found, source = folder_of("Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign")
    assert source == "Qwen/Qwen3-TTS-12Hz-1.7B-VoiceDesign@0123456789ab"
    assert open_talker(found, "cpu").info.weights_hash == open_talker(folder, "cpu").info.weights_hash


def test_what_is_no_model_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(InputError, match="must be a folder or a hub name"):
        folder_of("nothing-of-that-name")
    with pytest.raises(InputError, match=r"model_type 'qwen3_tts'.*got 'qwen3_tts_tokenizer_12hz'"):
        folder_of(folder / "speech_tokenizer")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"lacks config\.json"):
        folder_of(tmp_path / "empty")


def test_missing_weights_are_refused_not_made_up(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    weights = load_file(own / "model.safetensors")
    lost = "talker.codec_head.weight"
    save_file({k: v for k, v in weights.items() if k != lost}, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CertificateError, match=f"1 tensors are not those of the file: {lost}"):
        open_talker(own, "cpu")
    (own / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be loaded"):
        open_talker(own, "cpu")


def test_half_precision_files_are_computed_in_float32(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    half = {k: v.to(torch.bfloat16) for k, v in load_file(own / "model.safetensors").items()}
    save_file(half, own / "model.safetensors", metadata={"format": "pt"})
    assert open_talker(own, "cpu").certificate["dtype"] == "float32"


def test_garbage_frequencies_and_a_head_moved_by_one_are_seen(folder):
    own = open_talker(folder, "cpu")
    rotary = own.talker.model.rotary_emb
    kept = rotary.inv_freq.clone()
    rotary.inv_freq.mul_(1.01)
    with pytest.raises(CertificateError, match="rotary frequencies must equal"):
        certify(own)
    rotary.inv_freq.copy_(kept)
    certify(own)
    read = own.read_predictor
    own.read_predictor = lambda layer, states: read(layer, states).roll(1, dims=1)
    with pytest.raises(CertificateError, match="predictor's lens must give codes 1-15"):
        certify(own)


def test_loading_leaves_the_release_as_it_was_and_prints_nothing(folder, capfd):
    import qwen_tts.core.models.modeling_qwen3_tts as module

    before = module.Qwen3TTSTokenizer
    tts = compat.load_tts(folder, torch.device("cpu"))
    assert module.Qwen3TTSTokenizer is before and before.__name__ == "Qwen3TTSTokenizer"
    assert tts.model.speech_tokenizer.model.dtype == torch.float32
    assert capfd.readouterr() == ("", "")


def test_unknown_languages_speakers_and_empty_texts_are_refused(talker, custom_folder):
    with pytest.raises(InputError, match="Unsupported languages"):
        talker.prompt(TEXT, STYLE, language="Klingon")
    with pytest.raises(InputError, match="must not be empty"):
        talker.prompt("  ", STYLE)
    with pytest.raises(InputError, match="Unsupported speakers"):
        open_talker(custom_folder, "cpu").prompt(TEXT, STYLE, speaker="nobody")
    assert "generate" not in vars(talker.talker) and "generate" not in vars(talker.model)
