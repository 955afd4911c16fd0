"""Speed, memory and exactness of lmprobe's capture beside Hugging Face, TransformerLens, nnsight and pyvene.

Three tasks on a Llama of random weights (12 blocks, 44 M parameters; on a GPU a Qwen2.5-1.5B configuration, bfloat16):
    capture     the residual stream after every block at the last token of each prompt
    generate    the states from which every new token was chosen
    sweep       next-token logits with one direction projected out after one block, for every block
What each library does is in benchmarks/capture_arms.py; all are given the same weights, ids, masks, positions, batches.

One process per library, one thread, the arms in turns, so that other work on the machine meets all alike. Columns:
    CPU s       median (lowest - highest) of --repeats calls after one to warm up; on a GPU seconds of the clock
    / bare      median over the turns of this arm's time by that of the same passes with nothing kept
    peak MB     most bytes alive at once during the call, above what was alive before it: torch's own record of every
                allocation and release (not resident memory; weights are not in it). "- bare": what is above the floor
    bitwise     equal to output_hidden_states on the same ids and padding, bit for bit; the last block, which that shows
                after the final norm, is compared with what a hook copies. The sweep is compared with full runs.
Whether a goal is met is judged by the lowest times: other work on the machine only adds to a time.
Arms whose library is not installed, or fails, are named with the reason.

Run:     pip install -r benchmarks/capture-requirements.txt     (an environment of its own: see docs/benchmarks.md)
         python benchmarks/capture.py [--threads 1] [--repeats 7] [--device auto] [--task capture] [--size tiny]
"""

import argparse
import gc
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from itertools import accumulate, chain
from pathlib import Path

import capture_arms
import torch
from torch.profiler import ProfilerActivity, profile

from probecore.devices import device_of
from probecore.provenance import versions

TASKS = ("capture", "generate", "sweep")
IDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
TINY = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, **IDS)  # fmt: skip
SMALL = dict(vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=12, num_attention_heads=8,
             num_key_value_heads=4, max_position_embeddings=2048, **IDS)  # fmt: skip
QWEN = dict(vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
            num_key_value_heads=2, max_position_embeddings=32_768, rms_norm_eps=1e-6, rope_theta=1e6,
            tie_word_embeddings=True, **IDS)  # fmt: skip
WORKLOADS = {  # prompts, shortest, longest, new tokens, padded tokens in a batch, prompts and tokens of the sweep
    "tiny": (6, 5, 20, 4, 60, (4, 8)),
    "small": (8, 32, 128, 24, 608, (4, 48)),
    "qwen": (64, 64, 512, 64, 9216, (16, 256)),
}


def build(folder, size):
    """Write a model of random weights and a tokenizer, as a user has them on disk."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    if size == "qwen":
        model = Qwen2ForCausalLM(Qwen2Config(**QWEN)).to(torch.bfloat16)
    else:
        model = LlamaForCausalLM(LlamaConfig(**(TINY if size == "tiny" else SMALL)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains of 1 hide a state that was normed once too often
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.get_output_embeddings().weight[IDS["eos_token_id"]] = 0  # never chosen: all texts have the same length
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 100)}}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")), pad_token="<pad>", bos_token="<s>",
        eos_token="</s>", unk_token="w3",
    ).save_pretrained(folder)  # fmt: skip
    return sum(parameter.numel() for parameter in model.parameters())


def load(folder, size, device, attention):
    """Return the work that every arm does, on freshly loaded weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype="auto")
    model = model.eval().to(device)
    n, shortest, longest, steps, budget, sweep = WORKLOADS[size]
    chance = random.Random(0)
    vocabulary = model.config.vocab_size
    prompts = [[chance.randrange(4, vocabulary) for _ in range(chance.randint(shortest, longest))] for _ in range(n)]
    return capture_arms.Work(model, AutoTokenizer.from_pretrained(folder), prompts, steps, budget, sweep)


class Arms:
    """The arms of one library, run one call at a time; `ask` answers with JSON types."""

    def __init__(self, library, folder, size, device, attention, threads):
        warnings.filterwarnings("ignore")
        torch.set_num_threads(threads)
        self.work = load(folder, size, device, attention)
        self.cuda = self.work.device.type == "cuda"
        with torch.inference_mode():
            self.arms = capture_arms.LIBRARIES[library](self.work)
        self.results = {}

    def ask(self, do, task, arm=None, path=None):
        with torch.inference_mode():
            return getattr(self, do)(task, arm, path)

    def names(self, task, _arm, _path):
        return list(self.arms[task])

    def warm(self, task, arm, path):
        """Run once, and keep the result in a file."""
        result = self.arms[task][arm]()
        if result is not None:
            torch.save(result, path)
        return result is not None

    def reference(self, task, side, path):
        torch.save(capture_arms.reference(self.work, task, side), path)

    def tokens(self, task, _arm, _path):
        """Return how many real tokens a call of the task deals with: read, generated, or read once a block."""
        work = self.work
        if task == "generate":
            return work.steps * len(work.prompts)
        once = sum(int(batch.mask.sum()) for batch in (work.sweep_batches() if task == "sweep" else work.batches()))
        return once * (work.n_blocks if task == "sweep" else 1)

    def time(self, task, arm, _path):
        """Return seconds of one call: of all cores, or of the clock on a GPU."""
        gc.collect()
        clock = time.perf_counter if self.cuda else time.process_time
        start = clock()
        self.arms[task][arm]()
        if self.cuda:
            torch.cuda.synchronize()
        return clock() - start

    def memory(self, task, arm, _path):
        """Return the most bytes alive at once during a call, above those alive before it."""
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.arms[task][arm]()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            self.arms[task][arm]()
        changes = ((e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
        return max(accumulate((size for _, size in sorted(changes, key=lambda change: change[0])), initial=0))


class Process:
    """`Arms` in a process of its own: what a library changes, compiles or keeps is not the others' business."""

    def __init__(self, *setting):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--arms", json.dumps(setting)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True,
        )  # fmt: skip
        self._answer()

    def ask(self, do, task, arm=None, path=None):
        print(json.dumps([do, task, arm, path]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines() or ["it ended without a word"]
            raise RuntimeError(lines[-1])
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def serve(setting):
    """Answer questions on standard input until it closes; libraries print on what was standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    arms = None
    for line in chain([None], sys.stdin):
        try:
            answer = {"answer": arms.ask(*json.loads(line))} if line else {"answer": None}
            arms = arms or Arms(*setting)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


def missing(library):
    """Return why a library cannot be asked, nothing where it can."""
    package = capture_arms.PACKAGES.get(library)
    if package is None or importlib.util.find_spec(package):
        return ""
    return f"{package} is not installed: pip install -r benchmarks/capture-requirements.txt"


def measure(workers, task, repeats, folder):
    """Return rows {arm, seconds, peak, result or error} of one task; one call of every arm in turn, `repeats` times."""
    rows, running = [], []
    for library, worker in workers.items():
        for arm in worker.ask("names", task):
            row = {"library": library, "arm": arm, "seconds": []}
            rows.append(row)
            path = str(Path(folder) / f"{task} {len(rows)}.pt")
            try:
                row["result"] = path if worker.ask("warm", task, arm, path) else None
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:150]
            else:
                running.append((worker, row))
    for _ in range(repeats):
        for worker, row in running:
            row["seconds"].append(worker.ask("time", task, row["arm"]))
    for worker, row in running:
        row["peak"] = worker.ask("memory", task, row["arm"])
    return rows


def exactness(result, references):
    """Return "yes" where a result equals a reference bit for bit, else its largest difference from the closest one."""
    gaps = {name: (result - values).abs() for name, values in references.items()}
    name = min(gaps, key=lambda name: float(gaps[name].max()))
    if torch.equal(result, references[name]):
        return f"yes{name}"
    gap = gaps[name]
    blocks = gap.flatten(0, -3).amax(0).amax(-1) if gap.shape[-2] > 1 else gap  # (blocks,) of a capture
    inner, last = float(blocks[:-1].max()), float(blocks[-1].max())
    if last > 1000 * max(inner, 1e-7):
        return f"no: last block {last:.0e}, others {inner:.0e}{name}"
    return f"no: {float(gap.max()):.0e}{name}"


def references_of(process, task, folder, name=""):
    """Return the reference of every padding a task may use, by the words that are printed behind "yes" and "no"."""
    found = {}
    for side in ("right", "left") if task == "capture" else ("left",):
        path = str(Path(folder) / f"reference {task}.pt")
        process.ask("reference", task, side, path)
        found[name + (" (left padding)" if task == "capture" and side == "left" else "")] = torch.load(path)
    return found


def ratio(row, other):
    """Return the median over the turns of one arm's seconds by another's, and its range."""
    ratios = sorted(a / b for a, b in zip(row["seconds"], other["seconds"], strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]


def table(task, rows, references, unit, tokens):
    """Print one task, and how far we are from what we aim at."""
    timed = [row for row in rows if "error" not in row]
    floor, width = timed[0], max(len(row["arm"]) for row in rows)
    print(f"\n{task}\n  {'':{width}s}  {unit + ' (lowest - highest)':>28s}{'tokens/s':>10s}{'/ bare':>8s}"
          f"{'peak MB':>10s}{'- bare':>8s}   bitwise")  # fmt: skip
    for row in rows:
        if "error" in row:
            print(f"  {row['arm']:{width}s}  not run: {row['error']}")
            continue
        seconds, peak = row["seconds"], row["peak"] / 2**20
        row["exact"] = "" if row["result"] is None else exactness(torch.load(row["result"]), references)
        spread = f"{statistics.median(seconds):.3f} ({min(seconds):.3f} - {max(seconds):.3f})"
        print(
            f"  {row['arm']:{width}s}  {spread:>28s}{tokens / statistics.median(seconds):10.0f}"
            f"{ratio(row, floor)[0]:8.2f}{peak:10.1f}{peak - floor['peak'] / 2**20:8.1f}   {row['exact']}",
            flush=True,
        )
    own = next(row for row in timed if row["library"] == "lmprobe")
    peers = [row for row in timed if row["library"] not in ("bare", "lmprobe")]
    goals = [("bitwise equal", own["exact"].startswith("yes"), own["exact"])]
    if task == "sweep":
        naive = next(row for row in peers if row["library"] == "Hugging Face")
        goals.append(goal("at most .60 of the full runs", own, naive, 0.6))
        n = len(torch.load(own["result"]))
        goals[-1] = (*goals[-1][:2], f"{goals[-1][2]}; {(n + 1) / 2 / n:.3f} of the blocks are run")
    else:
        base = next((row for row in timed if "1 step more" in row["arm"]), floor)
        goals.append(goal(f"at most 1.05 of {base['arm']}", own, base, 1.05))
    fastest = min(peers, key=lambda row: min(row["seconds"]))
    goals.append(goal(f"not slower than the fastest peer ({fastest['arm']})", own, fastest, 1.0))
    leanest = min(peers, key=lambda row: row["peak"])
    share = own["peak"] / leanest["peak"]
    above = [f"{(row['peak'] - floor['peak']) / 2**20:.2f}" for row in (own, leanest)]
    goals.append(
        (f"at most half the memory of the leanest peer ({leanest['arm']})", share <= 0.5,
         f"{share:.2f} (MB above bare: {above[0]} and {above[1]})")
    )  # fmt: skip
    for text, met, value in goals:
        print(f"  {'met   ' if met else 'MISSED'} {text}: {value}", flush=True)


def goal(text, row, other, limit):
    """Return a goal, whether the ratio of the lowest times meets it, and that ratio beside those of the turns."""
    lowest = min(row["seconds"]) / min(other["seconds"])
    middle, low, high = ratio(row, other)
    return text, round(lowest, 2) <= limit, f"{lowest:.2f} by the lowest; turns {middle:.2f} ({low:.2f} - {high:.2f})"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, help="by default all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--size", choices=WORKLOADS, help="by default small, on a GPU qwen")
    parser.add_argument("--only", action="append", choices=capture_arms.LIBRARIES, help="these beside bare and lmprobe")
    parser.add_argument("--one-process", action="store_true", help="quick, but memory and time of arms are mixed")
    parser.add_argument("--arms", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.arms:
        return serve(json.loads(options.arms))
    device = str(device_of(options.device))
    size = options.size or ("qwen" if device.startswith("cuda") else "small")
    n, shortest, longest, steps, budget, sweep = WORKLOADS[size]
    libraries = ["bare", "lmprobe", *(options.only or list(capture_arms.LIBRARIES)[2:])]
    absent = {library: missing(library) for library in libraries if missing(library)}
    packages = {name: version(name) for name in capture_arms.PACKAGES.values() if importlib.util.find_spec(name)}
    print(", ".join(f"{name} {number}" for name, number in {**versions(), **packages}.items()))
    start = Process if not options.one_process else Arms
    with tempfile.TemporaryDirectory() as folder:
        parameters = build(folder, size)
        print(
            f"{parameters / 1e6:.1f} M parameters, random weights, on "
            f"{torch.cuda.get_device_name(device) if device.startswith('cuda') else 'cpu'}, {options.threads} threads; "
            f"{n} prompts of {shortest} to {longest} tokens, {steps} new ones, batches of at most {budget} tokens; "
            f"sweep over {sweep[0]} prompts of at most {sweep[1]}",
            flush=True,
        )
        for library, reason in absent.items():
            print(f"{library} left out: {reason}")
        setting = (folder, size, device)
        workers, exact = {}, {}
        try:
            for library in (library for library in libraries if library not in absent):
                try:
                    workers[library] = start(library, *setting, "sdpa", options.threads)
                except Exception as error:
                    print(f"{library} left out: {type(error).__name__}: {error}"[:300])
            exact[""] = start("bare", *setting, "sdpa", options.threads)
            if "TransformerLens" in workers:  # it switches to eager attention
                exact[" against eager"] = start("bare", *setting, "eager", options.threads)
            for task in [options.task] if options.task else TASKS:
                rows = measure(workers, task, options.repeats, folder)
                references = {}
                for name, process in exact.items():
                    references |= references_of(process, task, folder, name)
                tokens = next(iter(workers.values())).ask("tokens", task)
                table(task, rows, references, "s" if device.startswith("cuda") else "CPU s", tokens)
        finally:
            for worker in (*workers.values(), *exact.values()):
                if isinstance(worker, Process):
                    worker.end()


if __name__ == "__main__":
    main()
