"""Layer ablation: planted truths are found, their absence too, and no number depends on what else was asked."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from toy_codec import ToyCodec, toy_clip

from codecprobe import Corpus, ablate, embedded_corpus, open_codec, tokenize
from codecprobe.ablation_bench import CEILING, FLOOR, UNABLATED, Arm, Bench, partners, siblings
from codecprobe.layer_ablation import design, draw
from codecprobe.representation import cut_windows
from codecprobe.scorers import Listener
from probecli.codec import main
from probecore import InputError
from probecore.store import ArrayCache

ROW = {
    "kind", "layers", "metric", "value", "unablated_value", "control_value", "ci_low", "ci_high",
    "p_value", "p_adjusted", "n_clips", "n_speakers", "p_note",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def lost(cache):
    """Layers 0 and 1-2 of the planted codec, with frames of another speaker in their place."""
    return ablate(layers=["0", "1-2"], kinds=["resample"], cache=cache)


@pytest.fixture(scope="module")
def swapped(cache):
    return ablate(layers=["0", "1-2", "3-7"], swap=True, cache=cache)


def table(result) -> dict:
    return {(row["kind"], row["layers"], row["metric"]): row for row in result.rows}


def noise_corpus(n: int = 12, **fields) -> Corpus:
    return Corpus("noise", tuple(toy_clip(i, **fields) for i in range(n)))


def bench_of(corpus: Corpus, cache: Path, window_s: float = 0.4, seed: int = 0, codec=None, key: str = "k") -> Bench:
    codec = codec or ToyCodec()
    tokenized = tokenize(corpus, codec, cache=cache / "codes", quiet=True)
    windows, folds, _ = design(cut_windows(tokenized, window_s), seed)
    return Bench(windows, codec, Listener(codec), folds, seed=seed, cache=ArrayCache(cache / "b"), key=key)


# --- planted truths on the embedded pair


def test_without_layer_0_the_words_go_and_the_voice_stays(lost):
    """Planted: layer 0 content. Unablated phone accuracy .80, another speaker's clip .11; speaker chance .10."""
    rows = table(lost)
    content, voice = (rows["resample", "0", name] for name in ("phone accuracy", "speaker accuracy"))
    assert content["value"] < 0.2 < 0.7 < content["unablated_value"] and content["p_adjusted"] < 0.01
    assert content["value"] < content["control_value"] - 0.1 and content["p_control_adjusted"] < 0.01
    assert voice["value"] > 0.4 and voice["p_adjusted"] > 0.05
    assert rows["resample", "0", "F0 error (semitones)"]["value"] < 2


def test_without_layers_1_and_2_the_voice_goes_and_the_words_stay(lost):
    rows = table(lost)
    content, voice = (rows["resample", "1-2", name] for name in ("phone accuracy", "speaker accuracy"))
    assert voice["value"] < 0.25 and voice["effect_high"] < -0.2 and voice["p_adjusted"] < 0.05
    assert content["value"] > content["unablated_value"] - 0.05
    assert rows["resample", "1-2", "F0 error (semitones)"]["value"] > 3


def test_the_swap_moves_the_voice_with_layers_1_and_2_and_the_phones_with_layer_0(swapped):
    rows = table(swapped)
    voice, pitch, phones = ("voice (nats)", "pitch (semitones)", "phones")
    assert rows["swap", "1-2", voice]["moved_low"] > 0.4 and rows["swap", "0", voice]["moved_high"] < 0.3
    assert rows["swap", "1-2", pitch]["moved_low"] > 0.6 and rows["swap", "0", pitch]["moved_high"] < 0.2
    assert rows["swap", "0", phones]["moved_low"] > 0.7 and rows["swap", "1-2", phones]["moved_high"] < 0.1
    assert rows["swap", "1-2", voice]["p_adjusted"] < 0.05
    heard = rows["swap", "1-2", "heard as B"]
    assert heard["unablated_value"] < 0.3 < 0.6 < heard["value"]


def test_swapping_everything_is_all_the_way(swapped):
    for (_, layers, _), row in table(swapped).items():
        if layers == "0-7":
            assert row["value"] == row["all_swapped_value"]
            assert row["moved"] is None or row["moved"] == pytest.approx(1.0)
            assert row["p_value"] is None and row["p_note"]


def test_the_codec_without_the_plant_carries_no_voice(cache):
    """Nothing of who speaks is in its codes: even the swap of all layers moves no voice, and no share is made up."""
    rows = table(ablate(codec="embedded-flat", layers=["0", "1-2"], swap=True, clips=4, cache=cache))
    voice = rows["swap", "1-2", "voice (nats)"]
    assert voice["moved"] is None and "does not move" in voice["moved_note"] and voice["p_value"] is None
    assert rows["swap", "0", "phones"]["moved_low"] > 0.9


def test_the_probe_needs_layer_1_given_layer_0(lost):
    rows = [row for row in lost.rows if row["kind"].startswith("probe")]
    assert {row["kind"] for row in rows} == {"probe without", "probe adds"} and len(rows) == 8 + 7
    first = next(row for row in rows if row["kind"] == "probe adds" and row["layers"] == "1")
    assert first["effect"] > 0.1 and first["effect_low"] > 0
    for row in rows:
        assert row["effect"] == pytest.approx(row["value"] - row["unablated_value"])
        assert (row["control_value"] is None) == (row["kind"] == "probe adds")


def test_levels_frame_the_table(lost):
    """Another speaker's clip: speaker and phones gone; the same speaker's: the voice there, other words."""
    rows = table(lost)
    assert rows[FLOOR, None, "speaker accuracy"]["value"] < 0.2 < rows[CEILING, None, "speaker accuracy"]["value"]
    for kind in (FLOOR, CEILING):
        assert rows[kind, None, "phone accuracy"]["value"] < 0.25
        assert rows[kind, None, "phone accuracy"]["p_value"] is None


def test_rows_are_flat_and_complete_and_say_why_there_is_no_p(lost, swapped):
    for result in (lost, swapped):
        for row in result.rows:
            assert set(row) >= ROW
            assert all(value is None or isinstance(value, (str, int, float, bool)) for value in row.values())
            assert row["p_value"] is not None or row["p_note"]
            assert row["n_clips"] == 0 or row["n_speakers"] == 10
            if row["ci_low"] is not None:
                assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_distances_are_compared_with_the_control_only(lost):
    row = table(lost)["resample", "0", "mel distance (dB)"]
    assert row["unablated_value"] == 0.0 and row["p_value"] is None and row["p_control"] is not None


def test_a_further_kind_or_set_changes_no_number(lost, cache, tmp_path):
    """Asked together with others, from an empty cache: the same values, bit for bit (p is adjusted over more sets)."""
    small = {"speakers": 4, "clips": 3, "n_bootstrap": 50}
    alone = ablate(layers=["1-2"], kinds=["shuffle"], cache=tmp_path / "a", **small)
    more = ablate(layers=["0", "1-2", "all"], kinds=["mean", "shuffle"], cache=tmp_path / "b", **small)
    again = ablate(layers=["1-2"], kinds=["shuffle"], cache=tmp_path / "b", **small)
    assert alone.rows == again.rows
    for key, row in table(alone).items():
        for name in ("value", "control_value", "p_value", "ci_low"):
            assert table(more)[key][name] == row[name], (key, name)


def test_figures_and_tables_are_saved(lost, swapped, tmp_path):
    for name, result in (("lost", lost), ("swapped", swapped)):
        folder = result.save(tmp_path / name)
        for figure in result.figures:
            assert (folder / "figures" / f"{figure.name}.png").stat().st_size > 5000
    damage = {(row["layers"], row["metric"]): row["damage"] for row in lost.tables["damage"]}
    rows = table(lost)
    own, floor = rows["resample", "0", "phone accuracy"], rows[FLOOR, None, "phone accuracy"]
    by_hand = (own["value"] - own["unablated_value"]) / (floor["value"] - floor["unablated_value"])
    assert damage["0", "phone accuracy"] == pytest.approx(by_hand)


# --- design: what the classifiers know, who is swapped with whom


def test_the_classifiers_know_no_session_they_judge(tmp_path):
    corpus = embedded_corpus(speakers=3, sessions=3, clips=2)
    bench = bench_of(corpus, tmp_path, 3.0, codec=open_codec("embedded"))
    sessions = np.array([clip.session for clip in bench.windows.clips])
    for fold in range(3):
        judged, learned = sessions[bench._fold == fold], sessions[bench._fold != fold]
        assert not set(judged) & set(learned)
    assert (bench.speakers[bench.partner] != bench.speakers).all()
    assert (bench._fold[bench.partner] == bench._fold).all()
    assert (bench.speakers[bench.sibling] == bench.speakers).all()
    assert (sessions[bench.sibling] != sessions).all()


def test_the_mean_is_of_other_folds(tmp_path):
    bench = bench_of(noise_corpus(), tmp_path)
    fold = int(bench._fold[0])
    others = [i for i in range(len(bench._fold)) if bench._fold[i] != fold]
    by_hand = np.mean([bench._contributions(i).terms.mean(axis=1, dtype=np.float64) for i in others], axis=0)
    assert np.allclose(bench.mean_terms[fold], by_hand, atol=1e-6)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3, 3), (1, 2, 3), (5, 4, 1), (1, 1)])
def test_partners_are_of_another_speaker_and_each_used_once(sizes):
    speakers = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    for seed in range(10):
        found = partners(speakers, np.zeros(len(speakers), dtype=np.int64), seed)
        assert (found >= 0).all() and sorted(found) == list(range(len(speakers)))
        assert (speakers[found] != speakers).all()


def test_clips_without_a_partner_have_none():
    found = partners(np.array(["a", "a", "a", "b"]), np.zeros(4, dtype=np.int64), 0)
    assert (found[:3] >= 0).sum() == 1 and found[3] in (0, 1, 2)
    assert (partners(np.array(["a", "a"]), np.zeros(2, dtype=np.int64), 0) == -1).all()


def test_siblings_come_from_another_session_where_there_is_one():
    speakers = np.array(["a", "a", "a", "b", "b", "c"])
    sessions = np.array(["1", "1", "2", "3", "3", "4"])
    assert siblings(speakers, sessions).tolist() == [2, 2, 0, 4, 3, -1]


def test_nothing_replaced_is_the_reference_and_its_control_too(tmp_path):
    bench = bench_of(noise_corpus(), tmp_path)
    arms = [Arm(UNABLATED), Arm("drop", ()), Arm("drop", (1,))]
    found = bench.measure(arms)
    plain = found[Arm(UNABLATED)][0]
    for which in (0, 1):
        assert np.array_equal(found[Arm("drop", ())][which], plain, equal_nan=True)
    names = list(bench.names)
    assert (found[Arm("drop", (1,))][0, :, names.index("mel distance (dB)")] > 0.1).all()


def test_what_was_measured_is_not_measured_again(tmp_path):
    codec = ToyCodec()
    bench = bench_of(noise_corpus(), tmp_path, codec=codec)
    first = bench.measure([Arm("drop", (0,))])
    codec.encoded.clear()
    warm = bench_of(noise_corpus(), tmp_path, codec=codec)
    again = warm.measure([Arm("drop", (0,))])
    assert codec.encoded == [] and np.array_equal(*(x[Arm("drop", (0,))] for x in (first, again)), equal_nan=True)
    warm.measure([Arm("drop", (0,)), Arm("drop", (1,))])
    assert len(codec.encoded) == 12 * 2 + 12  # the new arm and its control, and the references once
    other = bench_of(noise_corpus(), tmp_path, codec=codec, key="another codec")
    codec.encoded.clear()
    other.measure([Arm("drop", (0,))])
    assert codec.encoded


class BlownUp(ToyCodec):
    """A decoder that gives infinity where the latent is large."""

    def decode_latent(self, latent, n_samples=None, state=None):
        wave = super().decode_latent(latent, n_samples, state)
        return wave / 0 if np.abs(latent).max() > 1.05 * self.limit else wave

    limit = math.inf


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_decode_that_is_not_finite_is_named_and_never_a_score(tmp_path):
    codec = BlownUp()
    bench = bench_of(noise_corpus(), tmp_path, codec=codec)
    codec.limit = max(float(np.abs(bench._contributions(i).latent).max()) for i in range(12))
    arm = Arm("drop", (0,))
    bench.latents = lambda i, arm: (
        bench._contributions(i).latent * (3 if i == 4 else 0.5), bench._contributions(i).latent
    )  # fmt: skip
    found = bench.measure([arm])[arm]
    assert np.isnan(found[0, 4]).all() and np.isfinite(found[0, 5]).any() and np.isfinite(found[1, 4]).any()
    assert bench.not_finite == [f"{bench.windows.clips[4].clip_id} (drop 0)"]
    codec.limit = 0.0
    with pytest.raises(InputError, match="decode of all layers is not finite"):
        _ = bench_of(noise_corpus(), tmp_path / "b", codec=codec).references


# --- corpora as they come


def test_up_to_six_clips_of_each_speaker_are_drawn():
    corpus = embedded_corpus(speakers=2, sessions=3, clips=4)
    drawn = draw(corpus, None, None, 3.0, 0)
    assert len(drawn.clips) == 12 and {clip.session for clip in drawn.clips} == set(corpus.sessions)
    few = Corpus("few", corpus.clips[:2] + corpus.clips[12:])
    assert len(draw(few, None, None, 3.0, 0).clips) == 2 + 6
    with pytest.raises(InputError, match="--clips must be at most"):
        draw(few, None, 3, 3.0, 0)


def test_short_broken_and_silent_clips_are_listed_by_name(tmp_path):
    rng = np.random.default_rng(0)
    for speaker in ("a", "b", "c"):
        for session in ("1", "2"):
            folder = tmp_path / "audio" / speaker / session
            folder.mkdir(parents=True)
            for k in range(2):
                soundfile.write(folder / f"{k}.wav", 0.1 * rng.standard_normal(8000), 8000)
    soundfile.write(tmp_path / "audio" / "a" / "1" / "short.wav", 0.1 * rng.standard_normal(1600), 8000)
    soundfile.write(tmp_path / "audio" / "b" / "2" / "silent.wav", np.zeros(8000), 8000)
    (tmp_path / "audio" / "c" / "1" / "broken.wav").write_bytes(b"RIFF nonsense")
    result = ablate(
        tmp_path / "audio", ToyCodec(), layers=["0"], kinds=["drop"], window_s=0.8, n_bootstrap=20,
        cache=tmp_path / "cache",
    )  # fmt: skip
    said = " ".join(result.notes)
    assert all(f"{name}.wav" in said or name in said for name in ("short", "silent", "broken")), said
    assert table(result)["drop", "0", "mel distance (dB)"]["n_clips"] == 12
    with pytest.raises(InputError, match="no clip can be used; the first is"):
        ablate(tmp_path / "audio", ToyCodec(), window_s=5.0, cache=tmp_path / "cache")


def test_windows_of_a_fifth_of_a_second_and_of_one_frame_work(tmp_path):
    for window_s in (0.2, 0.01):
        result = ablate(
            noise_corpus(), ToyCodec(), layers=["each"], kinds=["drop", "mean", "shuffle", "resample"],
            window_s=window_s, n_bootstrap=20, cache=tmp_path,
        )  # fmt: skip
        assert table(result)["drop", "0", "mel distance (dB)"]["n_clips"] == 12
        assert all(row["n_clips"] <= 12 for row in result.rows)
        assert ablate(noise_corpus(), ToyCodec(), swap=True, window_s=window_s, n_bootstrap=20, cache=tmp_path).rows


def test_one_session_per_speaker_is_said(tmp_path):
    clips = tuple(toy_clip(i, session=f"only-{i % 3}") for i in range(12))
    result = ablate(Corpus("one", clips), ToyCodec(), layers=["0"], window_s=0.4, n_bootstrap=20, cache=tmp_path)
    assert any("'speaker or recording'" in note for note in result.notes)
    assert any("3 speakers give no p below 0.25" in note for note in result.notes)


def test_one_speaker_or_a_layer_that_is_not_there_is_refused(tmp_path):
    alone = Corpus("alone", tuple(toy_clip(i, speaker="a", session="a1") for i in range(4)))
    with pytest.raises(InputError, match="at least 2 speakers"):
        ablate(alone, ToyCodec(), window_s=0.4, cache=tmp_path)
    with pytest.raises(InputError, match="layers 0 to 2"):
        ablate(noise_corpus(), ToyCodec(), layers=["3"], window_s=0.4, cache=tmp_path)
    with pytest.raises(InputError, match="--kind"):
        ablate(noise_corpus(), ToyCodec(), kinds=["zero"], window_s=0.4, cache=tmp_path)


# --- the command, and the real loading path


def test_the_command_prints_one_json_object(cache, monkeypatch):
    monkeypatch.setenv("CODECPROBE_CACHE", str(cache))
    args = ["ablate", "--layers", "0", "--layers", "1-2", "--kind", "resample", "--json", "--quiet"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["kind"] == "layer-ablation" and found["provenance"]["settings"]["layers"] == ["0", "1-2"]
    swap = CliRunner().invoke(
        main, ["ablate", "--swap", "--layers", "0", "--layers", "1-2", "--layers", "3-7", "--quiet"]
    )
    assert swap.exit_code == 0 and "Moved" in swap.stdout


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [(["--layers", "9"], 1, "layers 0 to 7"), (["--kind", "zero"], 2, "zero"), (["--asr", "nowhere"], 1, "recogniser")],
)
def test_what_a_user_can_mend_is_one_line(args, status, words):
    done = CliRunner().invoke(main, ["ablate", *args, "--quiet"])
    assert done.exit_code == status and words in done.stderr


@pytest.mark.transformers
def test_real_speech_through_a_tokenizer_folder(librispeech, tmp_path, tiny_qwen_folder):
    folder, common = str(tiny_qwen_folder), {"speakers": 4, "clips": 2, "n_bootstrap": 50, "cache": tmp_path}
    sets = ["0", "1-2", "3-15"]
    lost = ablate(librispeech / "dev-clean", folder, layers=sets, kinds=["drop", "mean"], device="cpu", **common)
    rows = table(lost)
    for layers in sets:
        row = rows["drop", layers, "mel distance (dB)"]
        assert row["n_clips"] == 8 and row["value"] > 0 and row["control_value"] > 0
    assert any("word error rate (no --asr" in note for note in lost.notes)
    swap = ablate(librispeech / "dev-clean", folder, layers=sets, swap=True, device="cpu", **common)
    assert {row["layers"] for row in swap.rows} == {*sets, "0-15"}


@pytest.mark.transformers
def test_a_window_beyond_the_released_chunk_is_decoded_without_a_seam_and_said(tmp_path, tiny_qwen_folder):
    """26 s are 325 frames; the released decode cuts at 300."""
    clips = tuple(toy_clip(i, seconds=26.5, rate_hz=8000, speaker=f"s{i % 2}", session=f"s{i}") for i in range(4))
    result = ablate(
        Corpus("long", clips), str(tiny_qwen_folder), layers=["all"], kinds=["drop"], window_s=26.0, n_bootstrap=0,
        device="cpu", cache=tmp_path,
    )  # fmt: skip
    assert any("every 300 frames" in note for note in result.notes)


@pytest.fixture(scope="module")
def tiny_qwen_folder(tmp_path_factory) -> Path:
    from tiny_qwen import build_tiny_qwen

    return build_tiny_qwen(tmp_path_factory.mktemp("qwen"))
