"""Speed of the Qwen3-TTS tokenizer through codecprobe beside its own wrapper, and of the whole notes experiment.

The codec has the published sizes (153.7 M parameters) and random weights: its codes mean nothing, its speed and memory
are those of the release. It is written by save_pretrained and opened as a user opens it.

Tokenizing: clips of 2 to 6 s, none a whole number of frames, three ways:
    clip by clip    Qwen3TTSTokenizer.encode(clip), what the codes of a clip are
    its own batch   Qwen3TTSTokenizer.encode([clips]), padded: the codes of a clip depend on its neighbours
    ours            codec.encode(clips): padded to whole frames, so that they do not
For each: seconds of audio per second, peak memory, and how many frames and codes differ from clip by clip. Ours may
differ in the last frame of a clip, where the wrapper pads features inside its convolutions instead of audio; "inner
frames" leaves it out. A GPU also rounds by batch shape, so near ties flip now and then.

The notes experiment (--corpus FOLDER in LibriSpeech's layout): 10 speakers x 5 clips, 16 layers, 1,000 permutations,
from audio files to table, with an empty and with a full cache; fewer where the folder holds fewer.

Run:     python benchmarks/codec.py [--corpus FOLDER] [--device auto] [--threads 2] [--clips 12] [--tiny]
"""

import argparse
import gc
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from codecprobe.codecs import qwen3_compat as compat
from codecprobe.codecs.registry import open_codec
from codecprobe.corpora.registry import open_corpus
from codecprobe.speaker import speaker_probe
from probecore.devices import device_of
from probecore.provenance import versions

RATE_HZ, HOP = 24_000, 1920
PUBLISHED = {
    "encoder": dict(
        num_filters=64, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, codebook_size=2048, codebook_dim=256,
        vector_quantization_hidden_dimension=256, upsample_groups=512,
    ),
    "decoder": dict(
        latent_dim=1024, hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=16, head_dim=64, codebook_size=2048, codebook_dim=512, decoder_dim=1536,
        vector_quantization_hidden_dimension=512,
    ),
}  # fmt: skip
SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             head_dim=16, codebook_size=64)  # fmt: skip
TINY = {
    "encoder": SMALL
    | dict(num_filters=4, codebook_dim=16, vector_quantization_hidden_dimension=16, upsample_groups=32),
    "decoder": SMALL | dict(latent_dim=32, codebook_dim=32, decoder_dim=48),
}
FIXED = {
    "encoder": dict(
        _frame_rate=12.5, sampling_rate=RATE_HZ, audio_channels=1, num_residual_layers=1,
        upsampling_ratios=[8, 6, 5, 4], num_quantizers=32, num_semantic_quantizers=1,
        sliding_window=250, use_cache=False,
    ),
    "decoder": dict(
        sliding_window=72, num_quantizers=16, num_semantic_quantizers=1, upsample_rates=[8, 5, 4, 3],
        upsampling_ratios=[2, 2],
    ),
}  # fmt: skip


@torch.no_grad()
def build(folder, sizes):
    """Write a codec with random weights; entries are drawn around what each layer really quantises."""
    compat.import_qwen_tts()
    from qwen_tts.core import Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizerV2Model
    from transformers import EncodecFeatureExtractor

    torch.manual_seed(0)
    config = Qwen3TTSTokenizerV2Config(
        encoder_config=FIXED["encoder"] | sizes["encoder"], decoder_config=FIXED["decoder"] | sizes["decoder"]
    )
    model = Qwen3TTSTokenizerV2Model(config).eval()
    for module in model.decoder.modules():  # without from_pretrained nothing rebuilds it
        if hasattr(module, "inv_freq"):
            module.inv_freq.copy_(compat.rope_frequencies(module.config, len(module.inv_freq)))
    seen = []
    hook = compat.encoder_downsample(model).register_forward_hook(lambda _m, _i, out: seen.append(out))
    wave = torch.from_numpy(clip(8.0, 99))[None]
    model.encode(wave, torch.ones(wave.shape, dtype=torch.long))
    hook.remove()
    encoder, decoder = model.encoder.quantizer, model.decoder.quantizer
    for group, other in (
        (encoder.semantic_residual_vector_quantizer, decoder.rvq_first),
        (encoder.acoustic_residual_vector_quantizer, decoder.rvq_rest),
    ):
        residual = group.input_proj(seen[0])
        for i, layer in enumerate(group.layers):
            flat = residual.transpose(1, 2).reshape(-1, residual.shape[1])
            table = flat.mean(0) + flat.std(0) * torch.randn(layer.codebook.embed_sum.shape)
            layer.codebook.embed_sum.copy_(table)
            layer.codebook.cluster_usage.fill_(1.0)
            layer.codebook._embed = None
            if i < len(other.vq.layers):
                other.vq.layers[i]._codebook.embedding_sum.copy_(table)
                other.vq.layers[i]._codebook.cluster_usage.fill_(1.0)
            residual = residual - layer.decode(layer.encode(residual))
    model.save_pretrained(folder)
    EncodecFeatureExtractor(feature_size=1, sampling_rate=RATE_HZ, padding_value=0.0).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def clip(seconds, seed):
    """Return toy speech (samples,) float32: harmonics of a moving pitch, an envelope, noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(120 + 50 * np.sin(2 * np.pi * 0.7 * t + seed)) / RATE_HZ
    tone = sum(np.sin(k * phase) / k for k in range(1, 8)) * (0.5 + 0.5 * np.sin(2 * np.pi * 2.3 * t))
    return (0.1 * tone + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def peak_memory(device, function):
    """Return wall and CPU seconds, peak MiB and the result of a call; memory is the GPU's, else the growth of ours."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        _forget_peak()
    before = _peak_of_process()
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else _peak_of_process() - before
    return seconds, cpu, peak, result


def _forget_peak():
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is that from here on
    except OSError:
        pass


def _peak_of_process():
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def differing(codes, reference):
    """Return differing frames, frames, differing codes, codes, and differing inner frames (all but the last)."""
    unequal = [a != b for a, b in zip(codes, reference, strict=True)]
    return (
        sum(int(each.any(axis=1).sum()) for each in unequal), sum(len(each) for each in unequal),
        sum(int(each.sum()) for each in unequal), sum(each.size for each in unequal),
        sum(int(each[:-1].any(axis=1).sum()) for each in unequal),
    )  # fmt: skip


def tokenizing(codec, n_clips, repeats):
    rng = np.random.default_rng(1)
    waves = [clip(seconds, i) for i, seconds in enumerate(rng.uniform(2, 6, n_clips).round(2) + 0.013)]
    audio = sum(map(len, waves)) / RATE_HZ
    tokenizer = codec.tokenizer

    def arrays(encoded):
        return [one.cpu().numpy() for one in encoded.audio_codes]

    ways = {
        "wrapper, clip by clip": lambda: [arrays(tokenizer.encode(wave, sr=RATE_HZ))[0] for wave in waves],
        "wrapper, padded batch": lambda: arrays(tokenizer.encode(list(waves), sr=RATE_HZ)),
        "ours": lambda: [one.values for one in codec.encode(waves)],
    }
    print(f"tokenizing {n_clips} clips, {audio:.1f} s of audio; best of {repeats}; wall, cpu: times as fast")
    print(f"  {'':24s}{'audio s / s':>12s}{'wall':>8s}{'cpu':>8s}{'peak MiB':>10s}   differ from clip by clip")
    runs = {name: [] for name in ways}
    with torch.inference_mode():
        for way in ways.values():
            way()
        for _ in range(repeats):  # in turns, so that other work on the machine meets all alike
            for name, way in ways.items():
                runs[name].append(peak_memory(codec.device, way))
    first = next(iter(runs.values()))
    for name, own in runs.items():
        wall, cpu = (min(run[k] for run in first) / min(run[k] for run in own) for k in (0, 1))
        frames, n_frames, values, n_values, inner = differing(own[-1][3], first[-1][3])
        print(
            f"  {name:24s}{audio / min(run[0] for run in own):12.1f}{wall:7.2f}x{cpu:7.2f}x"
            f"{max(run[2] for run in own):10.0f}   {frames} of {n_frames} frames ({inner} inner), {values} of "
            f"{n_values} codes",
            flush=True,
        )


def experiment(codec, corpus, speakers, clips):
    source = open_corpus(corpus, quiet=True)
    counts = {name: sum(one.speaker == name for one in source.clips) for name in source.speakers}
    speakers = min(speakers, sum(n >= clips for n in counts.values()))
    kept = tuple(one for one in source.clips if counts[one.speaker] >= clips)
    source = type(source)(source.name, kept, notes=source.notes, facts=source.facts)
    print(f"notes experiment: {speakers} speakers x {clips} clips, {codec.info.n_layers} layers, 1,000 permutations")
    with tempfile.TemporaryDirectory() as cache:
        times = []
        for name in ("empty cache", "full cache"):
            seconds, cpu, peak, result = peak_memory(
                codec.device,
                lambda: speaker_probe(
                    source, codec, speakers=speakers, clips=clips, n_permutations=1000, device=str(codec.device),
                    cache=Path(cache),
                ),
            )  # fmt: skip
            times.append(seconds)
            print(
                f"  {name:24s}{seconds:8.2f} s wall{cpu:8.2f} s cpu{peak:8.0f} MiB   {len(result.rows)} rows",
                flush=True,
            )
    print(f"  {'full / empty':24s}{times[1] / times[0]:8.1%}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", help="folder in LibriSpeech's layout, for the notes experiment")
    parser.add_argument("--speakers", type=int, default=10)
    parser.add_argument("--clips-each", type=int, default=5, help="clips of each speaker in the notes experiment")
    parser.add_argument("--clips", type=int, default=12, help="clips that are tokenized")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a tiny codec: a quick run that says nothing of speed")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    device = device_of(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    with tempfile.TemporaryDirectory() as folder:
        n_parameters = build(Path(folder), TINY if options.tiny else PUBLISHED)
        start = time.perf_counter()
        codec = open_codec(folder, str(device))
        opened = time.perf_counter() - start
        print(
            f"{n_parameters / 1e6:.1f} M parameters, random weights, on {where}, {options.threads} threads; opened and "
            f"certified in {opened:.1f} s",
            flush=True,
        )
        tokenizing(codec, options.clips, options.repeats)
        if options.corpus:
            experiment(codec, options.corpus, options.speakers, options.clips_each)
        else:
            print("notes experiment: give --corpus FOLDER")


if __name__ == "__main__":
    main()
