"""The identity table: on which architectures is an edit of the weights the same as a hook on every write?

Every row is a tiny random model built from its configuration alone, two blocks of width 32, all biases, norm gains and
embeddings random. The dense and mixture-of-experts rows are float64; hybrids, whose kernels compute in float32, are
float32. A random direction is removed three ways: from the weights (`lmprobe.orthogonalize`), by a hook on every write
(`lmprobe.ProjectOut`), and by hooks on everything that READS the stream (block inputs and outputs, norms), which is
written here without any code of the package. Gap is max |logit difference| / sd of the logits, over the prompt and, in
the float64 rows, over the logits of 5 tokens generated greedily with the cache; leak is that of `lmprobe.leak_audit`.

    python tests/identity.py            print the table
    python tests/identity.py --write    and put it into docs/identity-table.md, in the part of this transformers
"""

from __future__ import annotations

import math
import re
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from zoo import tokenizer

from lmprobe import ProjectOut, intervened, orthogonalize, wrap_model
from lmprobe.coverage import best_mode
from lmprobe.writers import find_writers
from probecore import CertificateError

D, L, V, STEPS = 32, 2, 128, 5
DOCS = Path(__file__).resolve().parents[1] / "docs" / "identity-table.md"
MAJOR = transformers.__version__.split(".")[0]
BASE: dict[str, Any] = dict(
    vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GQA = dict(BASE, num_key_value_heads=2)
HEAD = dict(GQA, head_dim=8)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
GPT = dict(vocab_size=V, n_embd=D, n_layer=L, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
MOE = dict(GQA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
GEMMA = dict(HEAD, query_pre_attn_scalar=8)
OPT = dict(BASE, ffn_dim=48, word_embed_proj_dim=D)
MAMBA2 = dict(mamba_chunk_size=16, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8)
DELTA = dict(
    head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)  # fmt: skip
ROUTED = dict(
    n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16,
    first_k_dense_replace=1, n_shared_experts=1,
)  # fmt: skip
EXACT, NULLSPACE, REFUSED, ABSENT = "exact", "nullspace only", "refused", "not in this version"

# name -> (model type, configuration, verdict)
DENSE: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("gpt2", GPT, EXACT),
    "gpt_neox, parallel": ("gpt_neox", dict(BASE, use_parallel_residual=True), EXACT),
    "gpt_neox, sequential": ("gpt_neox", dict(BASE, use_parallel_residual=False), EXACT),
    "gptj": ("gptj", dict(GPT, rotary_dim=4), EXACT),
    "opt": ("opt", OPT, EXACT),
    "opt, norm after": ("opt", dict(OPT, do_layer_norm_before=False), REFUSED),
    "bloom": ("bloom", dict(vocab_size=V, hidden_size=D, n_layer=L, n_head=4, **ENDS), REFUSED),
    "falcon": (
        "falcon",
        dict(vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=4, bias=True, alibi=False,
             new_decoder_architecture=False, multi_query=True, parallel_attn=True, bos_token_id=1, eos_token_id=2),
        EXACT,
    ),
    "llama": ("llama", GQA, EXACT),
    "llama, biases": ("llama", dict(GQA, attention_bias=True, mlp_bias=True), EXACT),
    "llama, tied": ("llama", dict(GQA, tie_word_embeddings=True), EXACT),
    "mistral": ("mistral", HEAD, EXACT),
    "qwen2": ("qwen2", GQA, EXACT),
    "qwen3": ("qwen3", HEAD, EXACT),
    "gemma": ("gemma", HEAD, EXACT),
    "gemma2": ("gemma2", GEMMA, NULLSPACE),
    "gemma3_text": ("gemma3_text", GEMMA, NULLSPACE),
    "phi": ("phi", BASE, EXACT),
    "phi3": ("phi3", GQA, EXACT),
    "stablelm": ("stablelm", GQA, EXACT),
    "starcoder2": ("starcoder2", GQA, EXACT),
    "olmo": ("olmo", GQA, EXACT),
    "olmo2": ("olmo2", GQA, NULLSPACE),
    "cohere": ("cohere", GQA, EXACT),
    "granite": (
        "granite",
        dict(GQA, embedding_multiplier=3.0, residual_multiplier=0.3, attention_multiplier=0.1, logits_scaling=2.0),
        EXACT,
    ),
    "mixtral": ("mixtral", dict(GQA, num_local_experts=4, num_experts_per_tok=2), EXACT),
    "qwen3_moe": ("qwen3_moe", dict(MOE, head_dim=8), EXACT),
    "qwen2_moe": ("qwen2_moe", dict(MOE, shared_expert_intermediate_size=24), EXACT),
    "gpt_oss": ("gpt_oss", dict(HEAD, num_local_experts=4, num_experts_per_tok=2), EXACT),
    "glm4": ("glm4", HEAD, NULLSPACE),
    "nemotron": ("nemotron", GQA, EXACT),
    "smollm3": ("smollm3", GQA, EXACT),
}  # fmt: skip
HYBRID: dict[str, tuple[str, dict[str, Any], str]] = {
    "lfm2": ("lfm2", dict(GQA, layer_types=["conv", "full_attention"]), EXACT),
    "mamba": ("mamba", dict(vocab_size=V, hidden_size=D, num_hidden_layers=L, state_size=4, pad_token_id=0), EXACT),
    "mamba2": (
        "mamba2",
        dict(vocab_size=V, hidden_size=D, num_hidden_layers=L, state_size=8, num_heads=8, head_dim=8, expand=2,
             n_groups=1, chunk_size=16, pad_token_id=0),
        EXACT,
    ),
    "jamba": (
        "jamba",
        dict(GQA, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
             num_experts=4, num_experts_per_tok=2, use_mamba_kernels=False, mamba_d_state=4),
        EXACT,
    ),
    "bamba": ("bamba", dict(GQA, **MAMBA2, mamba_expand=2, attn_layer_indices=[1]), EXACT),
    "falcon_h1": ("falcon_h1", dict(HEAD, **MAMBA2, mamba_d_ssm=64), EXACT),
    "granitemoehybrid": (
        "granitemoehybrid",
        dict(GQA, **MAMBA2, mamba_expand=2, layer_types=["mamba", "attention"], shared_intermediate_size=24,
             num_local_experts=4, num_experts_per_tok=2),
        EXACT,
    ),
    "qwen3_next": (
        "qwen3_next",
        dict(GQA, **DELTA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
             shared_expert_intermediate_size=16),
        EXACT,
    ),
    "qwen3_5_text": ("qwen3_5_text", dict(GQA, **DELTA), EXACT),
    "nemotron_h": (
        "nemotron_h",
        dict(HEAD, hybrid_override_pattern="M*", layers_block_type=["linear_attention", "full_attention"],
             mamba_num_heads=8, mamba_head_dim=8, n_groups=1, ssm_state_size=8, chunk_size=16),
        EXACT,
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        dict(HEAD, lru_width=D, attention_window_size=16, block_types=["recurrent", "attention"]),
        EXACT,
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {**GQA, **ROUTED, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
         "qk_nope_head_dim": 4, "v_head_dim": 8},
        EXACT,
    ),
    "glm4_moe": ("glm4_moe", dict(HEAD, **ROUTED), EXACT),
    "olmoe": ("olmoe", dict(GQA, num_experts=4, num_experts_per_tok=2), EXACT),
    "phimoe": ("phimoe", dict(GQA, num_local_experts=4, num_experts_per_tok=2), EXACT),
    "llama4_text": (
        "llama4_text",
        dict(HEAD, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=48, interleave_moe_layer_step=2),
        EXACT,
    ),
    "cohere2": ("cohere2", HEAD, EXACT),
    "helium": ("helium", HEAD, EXACT),
    "exaone4": ("exaone4", HEAD, NULLSPACE),
    "gemma4_text": ("gemma4_text", HEAD, NULLSPACE),
}  # fmt: skip
TABLE = {**DENSE, **HYBRID}


def build(name: str) -> Any:
    """Return the random model of a row, None where this transformers cannot build it."""
    kind, arguments, _ = TABLE[name]
    try:
        config = AutoConfig.for_model(kind, **arguments)
        config._attn_implementation = config._experts_implementation = "eager"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval()
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    model = model.double() if name in DENSE else model.float()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in model.named_parameters():
            z = torch.randn(p.shape, generator=chance, dtype=torch.float64).to(p.dtype)
            if p.ndim >= 2:
                p.copy_(z * 0.8 / math.sqrt(p.shape[-1]) if name in DENSE else p + z * 0.5 / math.sqrt(p.shape[-1]))
            elif key.endswith("weight") and ("norm" in key or "ln_" in key):
                p.add_(0.4 * z)
            elif name in DENSE:
                p.copy_(0.3 * z)
    model.tie_weights()
    model.generation_config.eos_token_id = None
    return model


def projected_reads(lm: Any, r: torch.Tensor) -> ExitStack:
    """Project everything that reads the stream: block inputs and outputs, and the norms that stand in a block.

    Projecting all reads equals projecting all writes, because a projection is linear and idempotent. Written without
    the package's own hooks and without what it knows of sub-layers.
    """

    def project(x: torch.Tensor) -> torch.Tensor:
        q = r.to(x.dtype)
        return x - (x @ q)[..., None] * q

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (project(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": project(kwargs["hidden_states"])}

    def after(module: Any, args: Any, output: Any) -> Any:
        return (project(output[0]), *output[1:]) if isinstance(output, tuple) else project(output)

    stack = ExitStack()
    for block in lm.sites.blocks:
        readers = [m for key, m in block.named_children() if "norm" in key or key.startswith("ln_")]
        for module in (block, *readers):
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(block.register_forward_hook(after).remove)
    return stack


def prompt_logits(lm: Any) -> torch.Tensor:
    """Return the logits of a fixed prompt of two texts."""
    ids = torch.randint(3, V, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.double()


def generated(lm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens generated greedily with the cache, and the logits of each step."""
    ids = torch.randint(3, V, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        made = lm.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return made.sequences[:, ids.shape[1] :], torch.stack(made.logits).double()


def gap(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float((reference - other).abs().max() / reference.std())


def measure(name: str) -> dict[str, Any]:
    """Return the row of one architecture."""
    row: dict[str, Any] = {"architecture": name, "verdict": ABSENT}
    model = build(name)
    if model is None:
        return row
    row["dtype"] = str(model.dtype).removeprefix("torch.")
    try:
        lm = wrap_model(model, tokenizer(), name=name)
    except CertificateError as error:
        return row | {"verdict": REFUSED, "why": _short(error)}
    writers = find_writers(lm)
    biased = any(w.layout == "bias" for w in writers.writers)
    row |= {"tied": writers.tied, "biases": biased, "tensors": len(writers.writers)}
    r = torch.randn(D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    r /= r.norm()
    mode = best_mode(writers)
    try:
        if mode == "nullspace":  # what "exact" says to this model, before anything is touched
            with_hook = [p.clone() for p in lm.model.parameters()]
            try:
                orthogonalize(lm, r)
                raise AssertionError(f"{name}: an exact edit behind a norm must be refused")
            except CertificateError as error:
                row["why"] = _short(error)
            assert all(torch.equal(a, b) for a, b in zip(with_hook, lm.model.parameters(), strict=True))
        plain = prompt_logits(lm)
        with intervened(lm, ProjectOut(r)):
            hooked, written = prompt_logits(lm), generated(lm) if name in DENSE else None
        if mode == "exact":
            with projected_reads(lm, r):
                reads = prompt_logits(lm)
        report = orthogonalize(lm, r, mode=mode)
    except CertificateError as error:
        return row | {"verdict": REFUSED, "why": _short(error)}
    edited = prompt_logits(lm)
    if written is not None:
        again = generated(lm)
        row |= {"generated": gap(written[1], again[1]), "same": torch.equal(written[0], again[0])}
    return row | {
        "verdict": EXACT if mode == "exact" else NULLSPACE, "passed": report.passed, "failures": report.failures,
        "effect": gap(hooked, plain), "gap": gap(hooked, edited),
        "reads": gap(reads, edited) if mode == "exact" else None,
        "leak_before": report.before.leak, "leak": report.after.leak, "source_gap": report.source_gap,
    }  # fmt: skip


def _short(error: Exception) -> str:
    """Return the reason in a refusal, without the name of the model and the next step."""
    text = str(error)
    for pattern in (r"its reach \((\w[^:]*: [^();]*)", r"has (a norm behind [^:]*):", r"known; ([^:]*):"):
        if found := re.search(pattern, text):
            return found.group(1)
    return text.split(":")[0][:160]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| architecture | verdict | tensors | tied head | biases | effect | gap to the hook | gap to reads | "
        "5 generated tokens | leak before | leak after | refused or limited because |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        number = {key: f"{row[key]:.1e}" if row.get(key) is not None else "" for key in ("gap", "reads", "leak")}
        plain = {key: f"{row[key]:.2f}" if row.get(key) is not None else "" for key in ("effect", "leak_before")}
        made = "" if "same" not in row else ("same" if row["same"] else "others") + f", {row['generated']:.1e}"
        yes = {key: "" if key not in row else "yes" if row[key] else "no" for key in ("tied", "biases")}
        lines.append(
            f"| {row['architecture']} | {row['verdict']} | {row.get('tensors', '')} | {yes['tied']} | {yes['biases']} "
            f"| {plain['effect']} | {number['gap']} | {number['reads']} | {made} | {plain['leak_before']} "
            f"| {number['leak']} | {row.get('why', '')} |"
        )
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]], seconds: float) -> str:
    """Return the size of the table and what it cost, in a sentence."""
    count = {v: sum(row["verdict"] == v for row in rows) for v in (EXACT, NULLSPACE, REFUSED, ABSENT)}
    words = ", ".join(f"{n} {v}" for v, n in count.items())
    return (
        f"{len(rows)} rows ({words}) on transformers {transformers.__version__}, torch {torch.__version__}: "
        f"{seconds:.0f} CPU seconds, one thread."
    )


def main() -> None:
    """Print the table; with --write put it into the docs."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    start = time.process_time()
    rows = [measure(name) for name in TABLE]
    text = f"{summary(rows, time.process_time() - start)}\n\n{markdown(rows)}"
    sys.stdout.write(text + "\n")
    if "--write" in sys.argv:
        page = DOCS.read_text(encoding="utf-8")
        begin, end = f"<!-- transformers {MAJOR} -->\n", f"<!-- end of transformers {MAJOR} -->"
        before, _, rest = page.partition(begin)
        assert rest, f"the page needs a part for transformers {MAJOR}"
        DOCS.write_text(f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
