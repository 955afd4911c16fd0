"""Claims of a publication as rows: what was said, what is measured for it, the estimate, and the verdict by a rule.

Conventions. A claim is measured by one part of the analysis, named in `Claim.part`. A part that was refused, or whose
input was not given, has no evidence and says why; its claims are then not decided, with that reason. No claim is ever
dropped. `verdicts` says what a rule does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from probecore.errors import DesignError
from probecore.results import Figure, Result, Row
from probecore.verdicts import Evidence, Rule, judge

COLUMNS = ("says", "estimand", "value", "ci_low", "ci_high", "p_value", "verdict", "why", "n_items", "n_clusters")
Run = TypeVar("Run")


@dataclass(frozen=True)
class Claim:
    """One claim: its key, what was said, what is measured for it, the rule and the part that measures it."""

    key: str
    says: str
    estimand: str
    rule: Rule
    part: str


@dataclass(frozen=True)
class Part:
    """One part: its full result (None where it was refused) and evidence by claim; `reason` says why there is none."""

    result: Result | None = None
    evidence: Mapping[str, Evidence] | None = None
    reason: str = ""


def part_of(measure: Callable[[Run], Part], run: Run) -> Part:
    """Run one part; a refused design becomes its reason."""
    try:
        return measure(run)
    except DesignError as error:
        return Part(reason=str(error))


def claim_rows(claims: Sequence[Claim], parts: Mapping[str, Part], absent: str = "not measured") -> tuple[Row, ...]:
    """Return a row per claim; `absent` is the reason where a part ran but has no evidence of a claim."""
    return tuple(claim_row(claim, parts[claim.part], absent) for claim in claims)


def claim_row(claim: Claim, part: Part, absent: str = "not measured") -> Row:
    """Return the row of one claim: evidence, verdict and why."""
    evidence = (part.evidence or {}).get(claim.key)
    if evidence is None:
        evidence = Evidence(reason=part.reason or absent)
    verdict, why = judge(claim.rule, evidence)
    return {
        "claim": claim.key, "says": claim.says, "estimand": claim.estimand, "part": claim.part,
        "value": evidence.value, "ci_low": evidence.low, "ci_high": evidence.high, "unit": evidence.unit,
        "p_value": evidence.p_value, "p_note": evidence.p_note or evidence.reason, "value_note": evidence.reason,
        "ci_note": evidence.reason, "verdict": verdict, "why": why, "detail_of_value": evidence.detail,
        "rule": str(claim.rule), "n_items": evidence.n_items, "n_clusters": evidence.n_clusters,
    }  # fmt: skip


def claim_tables(parts: Mapping[str, Part]) -> dict[str, tuple[Row, ...]]:
    """Return rows and tables of all parts, each under the name of its part: "NAME-rows", "NAME-TABLE"."""
    named = _measured(parts)
    return {f"{name}-rows": result.rows for name, result in named.items()} | {
        f"{name}-{key}": rows for name, result in named.items() for key, rows in result.tables.items()
    }


def claim_figures(parts: Mapping[str, Part]) -> tuple[Figure, ...]:
    """Return the figures of all parts, drawn from the tables of `claim_tables`."""
    return tuple(
        replace(figure, name=f"{name}-{figure.name}", table=f"{name}-{figure.table}")
        for name, result in _measured(parts).items()
        for figure in result.figures
    )


def refusals(parts: Mapping[str, Part]) -> tuple[str, ...]:
    """Return a note for every part that could not be measured."""
    return tuple(f"{name} could not be measured: {part.reason}" for name, part in parts.items() if part.reason)


def rules_note(n_claims: int, but: str = "") -> str:
    """Return the note on what verdicts are; `but` says which rules were not fixed beforehand."""
    return (
        f"Each verdict comes from a rule that was fixed beforehand (column 'rule' of the files) at 95 %{but}; about 1 "
        f"of {n_claims} may be wrong by chance. 'Not decided' speaks of these data, not of the claim."
    )


def _measured(parts: Mapping[str, Part]) -> dict[str, Result]:
    return {name: part.result for name, part in parts.items() if part.result is not None}
