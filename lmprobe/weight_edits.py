"""Weight edits: take directions out of what a model can write, so that the saved model is the ablated one.

Conventions. Q (d, k) is orthonormal, P = I - Q Q^T. Every vector w along a writer's axis of width d (a column of
W [out, in], a row of a token table, a bias) becomes P w. In a model whose sub-layers write straight into the residual
stream this equals projecting every write by a hook, to rounding ("exact"): scales, gates and routing weights commute
with P, and what reads the stream reads the same. The output head is not a writer; where it shares the token table it
gets its own copy first, and the configuration says so.

Behind a norm, y = g u / rms(u), an edit of weights cannot equal the hook: taking a part of u away changes rms(u). There
"nullspace" takes diag(g) Q out of u, so that y has no component along Q; logits differ from the hook's.

Sources: directional ablation and its weight form, Arditi et al. 2024 (arXiv 2406.11717); affine form arXiv 2411.09003;
norm-preserving columns as in J. Lai's projected abliteration (2025): w -> ||w|| P w / ||P w||. Arithmetic is float64,
rounded once.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmprobe.edit_report import EditReport, Mode, direction_hash, tensor_hash
from lmprobe.interventions import ProjectOut, active_interventions, intervened
from lmprobe.leak_audit import KL_LIMITS, audit_of, audit_tokens, logit_gap, passage
from lmprobe.models import LanguageModel, wrap_model
from lmprobe.sublayers import first_tensor, with_first
from lmprobe.tensor_edits import behind, edit_tensor
from lmprobe.vectors import Vectors, orthonormal, vector
from lmprobe.writers import Writers, find_writers
from probecore.errors import CertificateError, InputError, shorten
from probecore.validation import one_of

EDITED = " (edited)"


def orthogonalize(
    lm: LanguageModel,
    basis: Vectors,
    *,
    at: str | Iterable[str] = "writes",
    mode: Mode = "exact",
    strength: float = 1.0,
    norm_preserving: bool = False,
    center: Vectors | None = None,
    copy: bool = False,
    texts: int = 4,
    length: int = 32,
    seed: int = 0,
) -> EditReport:
    """Take a subspace out of every tensor that writes into the residual stream, and audit what came of it.

    basis : (d,) or (d, k), as in `ProjectOut`. at : "writes", or site names ("embed", "attention 3", "mlp 3").
    mode : "exact" must equal the hook, "nullspace" is for models with a norm behind the sub-layer. strength : 1
    removes, less leaves a part, more turns it round. norm_preserving : every write vector keeps its length; biases are
    projected. center : (d,), affine form; the token table then carries the centre's component. copy : edit a copy, else
    `lm` itself, whose info and certificate are brought up to date. texts, length, seed : random tokens of the audit.

    Refused before anything is touched: `InputError` for a basis or sites that do not fit, weights that are quantised
    or not in memory; `CertificateError` with what no edit of weights can reach, and for "exact" behind a norm. After
    the edit `EditReport.failures` holds what should hold and does not; `EditReport.require()` raises.
    """
    one_of(mode, ("exact", "nullspace"), "mode")
    if active_interventions(lm):
        raise InputError("weights are edited with no intervention acting; leave intervened(...) first")
    at = at if isinstance(at, str) else tuple(at)
    hook = ProjectOut(basis, at, center=center, strength=strength)
    writers = find_writers(lm)
    sites = require_covered(lm, writers, at, mode, hook)
    if center is not None and (at != "writes" or strength != 1.0 or norm_preserving or writers.norms):
        raise InputError(
            "the affine form exists in weights only for the whole exact edit at strength 1 of a model without norms "
            "behind its sub-layers: leave the other options out, or use ProjectOut(center=...) as a hook"
        )
    if copy:
        lm = wrap_model(copying.deepcopy(lm.model), lm.tokenizer, **_opening(lm))
        writers = find_writers(lm)
    frame = orthonormal(basis)
    ids = audit_tokens(lm, texts, length, seed)
    before, head = passage(lm, frame, ids, sites), tensor_hash(_head(lm))
    with intervened(lm, hook):
        hooked = passage(lm, frame, ids).logits
    with _on_sources(lm, writers, sites, frame, strength):
        on_sources = passage(lm, frame, ids).logits
    untied = writers.tied and "embed" in sites
    if untied:
        _untie(lm)
    shift = None if center is None else frame @ (frame.T @ vector(center, "center"))
    tokens = lm.model.get_input_embeddings()
    edits = tuple(
        edit_tensor(
            writer, frame, strength, norm_preserving=norm_preserving, shift=shift if writer.module is tokens else None
        )
        for writer in writers.writers
        if writer.site in sites
    )
    _renew(lm)
    seen = passage(lm, frame, ids, sites)
    gap, kl = logit_gap(hooked, seen.logits)
    source_gap, source_kl = logit_gap(on_sources, seen.logits)
    return EditReport(
        lm=lm, mode=mode, at=sites, whole=at == "writes", k=frame.shape[1], strength=strength,
        norm_preserving=norm_preserving, affine=center is not None, untied=untied, edits=edits,
        before=audit_of(lm, before, before, sites, frame), after=audit_of(lm, seen, before, sites, frame, center),
        gap=gap, kl=kl, source_gap=source_gap, source_kl=source_kl, kl_limit=KL_LIMITS[lm.dtype],
        head_same=tensor_hash(_head(lm)) == head, direction_hash=direction_hash(basis),
    )  # fmt: skip


def require_covered(
    lm: LanguageModel, writers: Writers, at: str | tuple[str, ...], mode: Mode, hook: ProjectOut
) -> tuple[str, ...]:
    """Return the sites that an edit changes; refuse what cannot be edited, before anything is touched."""
    config: Any = lm.model.config
    if getattr(config, "quantization_config", None) is not None or getattr(lm.model, "is_quantized", False):
        raise InputError(
            f"weights must be floating-point numbers; those of {lm.name} are quantised: load the model in float32 or "
            "bfloat16, edit it, and quantise it again"
        )
    wanted = None if at == "writes" else {at} if isinstance(at, str) else set(at)
    gaps = [gap for gap in writers.gaps if wanted is None or gap.site in wanted]
    if gaps:
        raise CertificateError(
            f"an edit of weights must reach all that writes into the residual stream; {len(gaps)} places of {lm.name} "
            f"are out of its reach ({'; '.join(f'{gap.site}: {gap.reason}' for gap in gaps[:2])}): "
            "intervene at 'input' and 'block' sites with hooks"
        )
    sites = hook.sites(lm)
    if unknown := sorted({*sites} - {*writers.sites}):
        raise InputError(
            f"what can be edited are embed and what sub-layers add; got {shorten(unknown)}: the sites of {lm.name} are "
            f"{shorten(list(writers.sites), most=6)}"
        )
    normed = [site for site in sites if site in writers.norms]
    if mode == "exact" and normed:
        raise CertificateError(
            f"an exact edit needs sub-layers that write straight into the residual stream; {lm.name} has a norm behind "
            f"{shorten(normed, most=2)}: take mode 'nullspace' (the direction is gone, logits differ from the hook's), "
            "or ProjectOut as a hook"
        )
    if mode == "exact" and writers.read_elsewhere and "embed" in sites:
        raise CertificateError(
            f"an exact edit needs tables that are read by the residual stream alone; those of {lm.name} are read "
            "elsewhere too: take mode 'nullspace' (those readers then see the edited table), or ProjectOut as a hook"
        )
    return sites


@contextmanager
def _on_sources(
    lm: LanguageModel, writers: Writers, sites: Sequence[str], frame: Tensor, strength: float
) -> Iterator[None]:
    """Project what tables give and norms are given (by their gain), and all other writes: what an edit must equal."""
    plain = [site for site in sites if site not in writers.norms and site != "embed"]
    gains = {writer.site: writer.gain for writer in writers.writers}
    sources = [(module, behind(frame, gains[site])) for site in sites for module in writers.norms.get(site, ())]
    sources += [(writer.module, frame) for writer in writers.writers if writer.site == "embed" and "embed" in sites]
    with ExitStack() as stack:
        if plain:
            stack.enter_context(intervened(lm, ProjectOut(frame, plain, strength=strength)))
        for module, q in sources:
            stack.callback(module.register_forward_hook(_projecting(q, strength)).remove)
        yield


def _projecting(q: Tensor, strength: float) -> Any:  # noqa: ANN401
    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401
        hidden = first_tensor(output)
        assert hidden is not None
        states = hidden if hidden.dtype == torch.float64 else hidden.float()
        basis = q.to(states.dtype).to(states.device)
        return with_first(output, (states - strength * ((states @ basis) @ basis.T)).to(hidden.dtype))

    return hook


def _untie(lm: LanguageModel) -> None:
    """Give the output head its own copy of the token table, and say so in the configuration."""
    head = lm.model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in {id(c): c for c in (lm.model.config, lm.model.config.get_text_config())}.values():
        config.tie_word_embeddings = False


def _head(lm: LanguageModel) -> Tensor:
    weight: Tensor = lm.model.get_output_embeddings().weight
    return weight


def _opening(lm: LanguageModel) -> dict[str, Any]:
    return {
        "name": lm.name, "revision": lm.info["revision"], "blocks": lm.sites.blocks_path,
        "final_norm": lm.sites.norm_path,
    }  # fmt: skip


def _renew(lm: LanguageModel) -> None:
    """Bring the info and the certificate of a model up to date with its edited weights."""
    name = lm.name if lm.name.endswith(EDITED) else lm.name + EDITED
    fresh = wrap_model(lm.model, lm.tokenizer, **{**_opening(lm), "name": name})
    object.__setattr__(lm, "info", fresh.info)
    object.__setattr__(lm, "certificate", fresh.certificate)
