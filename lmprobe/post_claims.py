"""The claims of the terrain post, each as an estimand and a rule, and the numbers it prints. Nothing depends on data.

Conventions. The post sets three models side by side and calls them lambda 0 (GPT-2), .4 (Phi-2) and .8 (Qwen2.5-1.5B);
here they are the roles base, partly and aligned. Margins, fixed here:

    .10     accuracies, shares and alpha: a value "is" a printed one within .10
    25 %    gaps: within a quarter of the printed value
    .50     Cohen's d: within half a standard deviation
    .42     "no gap": half of the smaller gap that the post calls significant (.849 nats)
    .90     "replaces annotation": accuracy on families of prompts that the rule has not seen
    .80     "one axis": the first component carries at least this share of what alignment changes
    .25-.75 "lambda .4 between 0 and .8": nearer to the middle of the path than to either end
    .01     "converges" fails where steps shrink by less than 1 % a token, or grow

The values of alpha, d and gap are claims about those three models; tested on others they say what these would print.
`docs/terrain-post.md` says of each claim why this estimand, and which artefact it could be.
"""

import math

from probecore.claims import Claim
from probecore.verdicts import Rule

TERRAIN, ORDER, PAIR, AXIS, ANNOTATION = "terrain", "order", "pair", "axis", "annotation"
PARTS = (TERRAIN, ORDER, PAIR, AXIS, ANNOTATION)
ROLES = ("base", "partly", "aligned")
MODELS = {"base": "GPT-2", "partly": "Phi-2", "aligned": "Qwen2.5-1.5B"}
LAMBDAS = {"base": 0.0, "partly": 0.4, "aligned": 0.8}
GAPS = {"base": 0.176, "partly": 1.171, "aligned": 0.849}
EFFECTS = {"base": 0.32, "partly": 3.24, "aligned": 1.36}
ALPHAS = {"base": 0.096, "partly": 0.674, "aligned": 0.462}
PC1, FIVE = 0.848, 0.98
N_CLASS = 20  # safe and risk prompts of the post, each
MARGIN, SHARE, HALF_SD, NO_GAP, REPLACES, ONE_AXIS = 0.10, 0.25, 0.50, 0.42, 0.90, 0.80
FOUND = Rule(low=0.0, fails_below=MARGIN, needs_p=True)
POSITIVE = Rule(low=0.0, needs_p=True)
MIDDLE, SHRINKS = (0.25, 0.75), 0.01


def _sized(value: float) -> Rule:
    return Rule(value * (1 - SHARE), value * (1 + SHARE))


def _claims() -> tuple[Claim, ...]:
    claims = [
        Claim(f"regions-{role}", f"{MODELS[role]}: risk and safe lie in distinct regions",
              "accuracy of the best layer - best control, unseen families", FOUND, TERRAIN)
        for role in ROLES
    ]  # fmt: skip
    claims.append(Claim("universal", "the structure is universal", "the smallest of these differences", FOUND, TERRAIN))
    claims.append(
        Claim("gap-base", "GPT-2: the gap is not significant (p = .41)", "entropy gap, own text (nats)",
              Rule(-NO_GAP, NO_GAP), TERRAIN)
    )  # fmt: skip
    claims += [
        Claim(f"gap-{role}", f"{MODELS[role]}: risk prompts leave more open", "entropy gap, own text (nats)", POSITIVE,
              TERRAIN)
        for role in ROLES[1:]
    ]  # fmt: skip
    for role in ROLES:
        claims += [
            Claim(f"gap-size-{role}", f"{MODELS[role]}: gap {GAPS[role]:g}", "entropy gap, own text (nats)",
                  _sized(GAPS[role]), TERRAIN),
            Claim(f"d-{role}", f"{MODELS[role]}: Cohen's d {EFFECTS[role]:g}", "Cohen's d of mean entropies, own text",
                  Rule(EFFECTS[role] - HALF_SD, EFFECTS[role] + HALF_SD), TERRAIN),
            Claim(f"alpha-{role}", f"{MODELS[role]}: alpha {ALPHAS[role]:g}", "1 - var(safe) / var(risk), own text",
                  Rule(ALPHAS[role] - MARGIN, ALPHAS[role] + MARGIN), TERRAIN),
        ]  # fmt: skip
    claims += [
        Claim("alpha-shows", "alpha shows alignment", "alpha of the aligned model, own text", POSITIVE, TERRAIN),
        Claim("alpha-grows", "alpha grows with alignment", "alpha of the aligned model - the base's, same prompts",
              Rule(low=0.0), ORDER),
        Claim("lambda", "lambda is 0, .4, .8", "place of partly on the path base (0) to aligned (1): .5",
              Rule(*MIDDLE), PAIR),
        Claim("additive", "V = V_base + lambda V_align", "share of KL(partly || base) off the path to aligned",
              Rule(high=MARGIN), PAIR),
        Claim("not-one-axis", "alignment is not one axis",
              "share of the first component in log-ratios aligned - base, over prompts", Rule(high=ONE_AXIS), AXIS),
        Claim("pc1", "GPT-2: PC 1 carries 84.8 %", "share of PC 1, prompts, last block",
              Rule(PC1 - MARGIN, PC1 + MARGIN), TERRAIN),
        Claim("five", "GPT-2: five dimensions carry 98 %", "share of 5 components, prompts, last block",
              Rule(FIVE - MARGIN / 2, math.inf), TERRAIN),
        Claim("converges", "trajectories converge", "slope of the log step length, 50 % depth, aligned model",
              Rule(high=0.0, fails_above=-SHRINKS, needs_p=True), TERRAIN),
        Claim("annotation", "field metrics can replace annotation",
              "accuracy of three entropies in telling risk from safe, unseen families, aligned model",
              Rule(low=REPLACES), ANNOTATION),
    ]  # fmt: skip
    return tuple(claims)


CLAIMS = _claims()
