"""What an ear would notice: measures that hold still where they must, and move where the truth is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from toy_codec import ToyCodec

from codecprobe import ablate, embedded_corpus, open_codec
from codecprobe.scorers import (
    MEASURES,
    Heard,
    Listener,
    compare,
    fit_recogniser,
    measures,
    median_pitch,
    mfcc_agreement,
    true_phones,
)
from codecprobe.speech_models import SpeakerModel, Transcriber, word_error_rate
from codecprobe.swap_measures import SWAP_MEASURES, compare_pair
from probecore import InputError

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def world():
    """Clips of 4 speakers in 2 sessions, what is heard in them, and classifiers of the first session."""
    codec = open_codec("embedded")
    corpus = embedded_corpus(speakers=4, sessions=2, clips=5)
    waves = [clip.read().samples[: 3 * RATE_HZ] for clip in corpus.clips]
    heard = Listener(codec).hear(waves)
    first = [i for i, clip in enumerate(corpus.clips) if clip.session.endswith("s0")]
    recogniser = fit_recogniser([corpus.clips[i] for i in first], [heard[i] for i in first])
    return corpus.clips, heard, recogniser, codec


def test_a_clip_against_itself_is_untouched(world):
    clips, heard, recogniser, codec = world
    found = compare(clips[-1], heard[-1].codes, heard[-1], heard[-1], recogniser)
    for measure in MEASURES:
        if measure.unablated is not None and measure.name != "word error rate":
            assert found[measure.name] == pytest.approx(measure.unablated, abs=1e-12), measure.name
    assert found["codes kept"] == 1.0
    assert list(found) == [measure.name for measure in measures(codec.info.n_layers)]


def test_speakers_and_phones_are_recognised_on_a_session_not_heard(world):
    """4 speakers at chance .25; 36 phones. A known voice in a new session: well above, and phones too."""
    clips, heard, recogniser, _ = world
    new = [i for i, clip in enumerate(clips) if clip.session.endswith("s1")]
    found = [compare(clips[i], heard[i].codes, heard[i], heard[i], recogniser) for i in new]
    assert np.mean([one["speaker accuracy"] for one in found]) > 0.6
    assert np.mean([one["phone accuracy"] for one in found]) > 0.6
    for one in found:
        assert (one["speaker log-odds"] > 0) == bool(one["speaker accuracy"])


def test_log_odds_are_those_of_the_two_most_likely(world):
    clips, heard, recogniser, _ = world
    scores = dict(zip(recogniser.speakers, recogniser.speaker_scores(heard[0]), strict=True))
    own = scores.pop(clips[0].speaker)
    found = compare(clips[0], heard[0].codes, heard[0], heard[0], recogniser)
    assert found["speaker log-odds"] == pytest.approx(own - max(scores.values()))


def test_two_speakers_work_as_well(world):
    clips, heard, _, _ = world
    two = [i for i, clip in enumerate(clips) if clip.speaker in ("v00", "v01")]
    recogniser = fit_recogniser([clips[i] for i in two], [heard[i] for i in two])
    right = [recogniser.speakers[int(recogniser.speaker_scores(heard[i]).argmax())] == clips[i].speaker for i in two]
    assert np.mean(right) > 0.9
    with pytest.raises(InputError, match="at least 2 speakers"):
        fit_recogniser([clips[0]], [heard[0]])
    stranger = compare(clips[-1], heard[-1].codes, heard[-1], heard[-1], recogniser)
    assert np.isnan(stranger["speaker accuracy"]) and np.isnan(stranger["speaker log-odds"])


def test_agreement_ignores_a_constant_and_sees_time(world):
    _, heard, _, codec = world
    louder = Listener(codec).hear([heard[0].wave * 0.5])[0]
    assert mfcc_agreement(louder, heard[0]) > 0.99
    backwards = Listener(codec).hear([heard[0].wave[::-1].copy()])[0]
    assert mfcc_agreement(backwards, heard[0]) < 0.5


def test_phones_stand_where_the_corpus_says(world):
    clips, _, _, _ = world
    track = true_phones(clips[0], 300)
    for phone in clips[0].phones:
        for frame in range(300):
            if phone.start_s <= frame * 0.01 - 1e-9 and frame * 0.01 < phone.end_s - 1e-9:
                assert track[frame] == phone.name
    assert set(true_phones(clips[0], 2000)[1000:]) == {"sil"}


def test_pitch_level_and_voicing_move_by_what_was_done(world):
    """Half the rate of samples: an octave down. Half the amplitude: 6.02 dB, less where a frame reaches the floor."""
    clips, heard, recogniser, codec = world
    wave = heard[0].wave
    slow = np.interp(np.arange(len(wave)) / 2, np.arange(len(wave)), wave).astype(np.float32)
    lower, quiet, silent = Listener(codec).hear([slow, wave / 2, np.zeros_like(wave)])
    assert median_pitch(lower) - median_pitch(heard[0]) == pytest.approx(-12, abs=1.5)
    found = compare(clips[0], heard[0].codes, quiet, heard[0], recogniser)
    assert 5.5 < found["level error (dB)"] < 6.03 and found["F0 error (semitones)"] < 0.01
    nothing = compare(clips[0], heard[0].codes, silent, heard[0], recogniser)
    assert np.isnan(nothing["F0 error (semitones)"]) and nothing["MFCC agreement"] == 0.0
    assert nothing["voicing error"] == (heard[0].pitch > 0).mean()


def test_a_decode_that_is_not_finite_is_none_and_stops_no_other():
    codec = ToyCodec()
    good = (0.1 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)
    bad = good.copy()
    bad[7] = np.nan
    heard = Listener(codec).hear([bad, good])
    assert heard[0] is None and isinstance(heard[1], Heard)
    assert Listener(codec).hear([bad]) == [None]


def test_swap_measures_point_from_a_to_b(world):
    """A clip itself is at one end, the other clip at the other; the two ends mirror each other where they must."""
    clips, heard, recogniser, _ = world
    i, j = 0, len(clips) - 1
    at_a = compare_pair(clips[i], clips[j], heard[i], heard[i], heard[j], recogniser)
    at_b = compare_pair(clips[i], clips[j], heard[j], heard[i], heard[j], recogniser)
    assert list(at_a) == [measure.name for measure in SWAP_MEASURES]
    for name in ("voice (nats)", "pitch (semitones)", "phones", "MFCC", "mel (dB)"):
        assert at_a[name] < 0 < at_b[name], name
    for name in ("pitch (semitones)", "mel (dB)"):
        assert at_a[name] == pytest.approx(-at_b[name])
    assert at_a["heard as B"] == 0.0 and at_b["heard as B"] == 1.0


@pytest.mark.parametrize(
    ("reference", "heard", "rate"),
    [
        ("a b c d", "a b c d", 0),
        ("a b c d", "A, B; c  D!", 0),
        ("a b c d", "a x c d", 1 / 4),
        ("a b c d", "a c d", 1 / 4),
        ("a b", "x a y b z", 3 / 2),
        ("don't go", "don't", 1 / 2),
        ("a b", "", 1),
        ("Straße", "STRASSE", 0),
    ],
)
def test_word_error_rate(reference, heard, rate):
    assert word_error_rate(reference, heard) == rate


def test_no_words_to_hear_have_no_error_rate():
    assert np.isnan(word_error_rate("...", "something"))


def test_word_error_rate_is_a_brute_force_edit_distance():
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = ([str(w) for w in rng.integers(0, 3, rng.integers(1, 6))] for _ in range(2))
        assert word_error_rate(" ".join(a), " ".join(b)) == distance(a, b) / len(a)


@pytest.fixture(scope="module")
def asr_folder(tmp_path_factory) -> Path:
    """A random wav2vec 2.0 recogniser of letters, as `save_pretrained` writes it."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("asr")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefg"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    torch.manual_seed(0)
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(letters), pad_token_id=0, **_small())).save_pretrained(folder)
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speaker_folder(tmp_path_factory) -> Path:
    """A random WavLM with an x-vector head, as `save_pretrained` writes it."""
    import torch
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    folder = tmp_path_factory.mktemp("xvector")
    torch.manual_seed(0)
    head = {"tdnn_dim": (16, 16, 16, 16, 32), "xvector_output_dim": 12, "classifier_proj_size": 16, "num_labels": 2}
    WavLMForXVector(WavLMConfig(**_small(), **head, num_buckets=32)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def _small() -> dict:
    return {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (80, 4), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "group",
    }  # fmt: skip


@pytest.mark.transformers
def test_a_recogniser_by_folder_hears_each_clip_alone(asr_folder, world):
    _, heard, recogniser, codec = world
    model = Transcriber(str(asr_folder), "cpu")
    waves = [heard[0].wave, heard[1].wave[:1600]]
    texts = model.transcribe(waves, RATE_HZ)
    assert texts == [model.transcribe([wave], RATE_HZ)[0] for wave in waves] and all(isinstance(t, str) for t in texts)
    listened = Listener(codec, None, model).hear([heard[0].wave, heard[5].wave])
    found = compare(world[0][0], heard[0].codes, listened[1], listened[0], recogniser)
    expected = word_error_rate(listened[0].words, listened[1].words)
    assert found["word error rate"] == pytest.approx(expected, nan_ok=True)
    assert asr_folder.name in model.identity and Transcriber(str(asr_folder), "cpu").identity == model.identity


@pytest.mark.transformers
def test_a_speaker_model_by_folder_gives_unit_vectors_at_any_rate(speaker_folder, world):
    _, heard, _, codec = world
    model = SpeakerModel(str(speaker_folder), "cpu")
    vectors = model.vectors([heard[0].wave, heard[1].wave, heard[0].wave[:300]], RATE_HZ)
    assert vectors.shape == (3, 12) and np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.allclose(vectors[1], model.vectors([heard[1].wave], RATE_HZ)[0])
    assert np.isfinite(model.vectors([heard[0].wave], 24_000)).all()
    assert np.allclose(Listener(codec, model).hear([heard[0].wave])[0].voice, vectors[0])


@pytest.mark.transformers
def test_ecapa_of_a_base_model_gives_the_vectors_of_the_released_code(tmp_path, capsys):
    """The whole released model, loaded by its own from_pretrained, is the reference; both are float32 on the CPU."""
    pytest.importorskip("qwen_tts")
    import torch
    from tiny_talker import build_tiny_talker

    from codecprobe.codecs.qwen3_talker_compat import load_tts

    folder = build_tiny_talker(tmp_path / "base", kind="base", layers=1)
    released = load_tts(folder, torch.device("cpu")).model
    model = SpeakerModel(str(folder), "cpu")
    waves = [np.random.default_rng(i).normal(scale=0.4, size=24_000).astype(np.float32) for i in range(2)]
    capsys.readouterr()
    found = model.vectors([*waves, waves[0][:400]], 24_000)
    assert capsys.readouterr().out == "" and found.shape == (3, 32) and np.isfinite(found).all()
    for wave, own in zip(waves, found, strict=False):
        vector = released.extract_speaker_embedding(wave, 24_000).double().numpy()
        np.testing.assert_allclose(own, vector / np.linalg.norm(vector), atol=1e-6)
    assert model.identity.startswith("base ECAPA ") and SpeakerModel(str(folder), "cpu").identity == model.identity
    assert model.vectors([waves[0][::3]], 8_000).shape == (1, 32)


def test_ecapa_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(InputError, match="a model of SpeechBrain"):
        SpeakerModel("speechbrain/spkrec-ecapa-voxceleb", "cpu")
    for name in ("generation_config.json", "speech_tokenizer/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_tts", "tts_model_type": "voice_design"}')
    with pytest.raises(InputError, match="only a Base model of Qwen3-TTS has a speaker encoder"):
        SpeakerModel(str(tmp_path), "cpu")


@pytest.mark.parametrize("opener", [Transcriber, SpeakerModel])
def test_a_model_that_is_not_there_is_refused_in_one_line(opener, tmp_path):
    with pytest.raises(InputError, match="cannot be opened as a sp") as refusal:
        opener(str(tmp_path), "cpu")
    assert "\n" not in str(refusal.value)


@pytest.mark.transformers
def test_outside_models_take_their_place_in_an_ablation(asr_folder, speaker_folder, tmp_path):
    """Both by folder: rows of words appear, and the voice is judged by vectors of 12 numbers instead of MFCC."""
    given = {"asr": str(asr_folder), "speaker_model": str(speaker_folder), "device": "cpu", "cache": tmp_path}
    corpus = embedded_corpus(speakers=3, sessions=2, clips=2)
    plain = ablate(corpus, layers=["0"], kinds=["drop"], n_bootstrap=20, cache=tmp_path)
    result = ablate(corpus, layers=["0"], kinds=["drop"], n_bootstrap=20, **given)
    rows, before = ({(row["kind"], row["metric"]): row for row in r.rows} for r in (result, plain))
    words = rows["drop", "word error rate"]
    assert words["unablated_value"] == 0.0 and words["value"] >= 0.0 and words["n_clips"] > 0
    assert not any("word error rate" in note for note in result.notes)
    assert rows["drop", "speaker log-odds"]["value"] != before["drop", "speaker log-odds"]["value"]
    assert rows["drop", "phone accuracy"] == before["drop", "phone accuracy"]
    assert speaker_folder.name in result.provenance["settings"]["listeners"]["speaker"]
