"""The claims of the research log, each as an estimand and a rule. Nothing here depends on data.

Conventions. Directions are class-mean directions, k@95 the smallest number whose removal costs 5 % of the accuracy.
Members are compared at the same number of steps after their own grok step. Margins, fixed here:

    1, 0        "sooner", "more", "spreads": a ratio above 1, a difference above 0
    factor 2    a printed ratio "is" reproduced within a factor of two (32x: 16 to 64); 2x: 1.5 to 2.5
    .10         a printed share or overlap within .10; "does not entangle": overlaps within .10
    3           a printed number of directions within 3 (within 1 where it is 2)
    .99         "the other stays": at least 99 % of what it had
    .10         "cannot learn": held-out accuracy below .10 (the log prints 4 %)

A number that the log prints for its own task and size is only compared with members of that size (--full). A verdict
needs 5 seeds. `CONFOUNDS` names what else could make each claim true or false; docs/research-log.md says more.
"""

from probecore.claims import Claim
from probecore.verdicts import Rule

SWEEP, MULTITASK, ADVERSARIAL, CAPACITY = "sweep", "multitask", "adversarial", "capacity"
BATCH, ROBUSTNESS, TRILEMMA = "batch-size", "robustness", "trilemma"
PARTS = (SWEEP, MULTITASK, ADVERSARIAL, CAPACITY, BATCH, ROBUSTNESS, TRILEMMA)
LEAST_SEEDS = 5
MORE, SOONER, SHARE = Rule(low=0.0), Rule(low=1.0), 0.10
SAME_PHASE = ", same time after grokking"
LOGS_SIZE = ("rank99-27", "k95-11", "survives-30", "k95-2", "overlap-10", "overlap-30")

CLAIMS = (
    Claim("sooner", "weight decay makes grokking sooner", "grok step at WD 0 / at WD 1", SOONER, SWEEP),
    Claim("32x", "WD 1.0 groks 32 times sooner than WD 0", "grok step at WD 0 / at WD 1", Rule(16, 64), SWEEP),
    Claim("sooner-fan-in", "and from another initialisation", "grok step at WD 0 / at WD 1, both from fan-in", SOONER,
          SWEEP),
    Claim("data", "the best share of the data is .3 to .7", "grok step at .9 / at .7", SOONER, SWEEP),
    Claim("small-sooner", "1L d64 groks soonest", "grok step of a larger model / of 1L d64", SOONER, SWEEP),
    Claim("diffuse", "no weight decay leaves many directions (69 against 27)",
          "rank99 at WD 0, at its end - at WD 1", MORE, SWEEP),
    Claim("sweet-spot", "WD .1 survives the most removals (30 against 11)",
          "k@95 at WD .1 - at WD 1" + SAME_PHASE, MORE, SWEEP),
    Claim("sweet-fan-in", "and from another initialisation",
          "k@95 at WD .1 - at WD 1, both from fan-in" + SAME_PHASE, MORE, SWEEP),
    Claim("rank-decay", "strong decay concentrates (43 against 27)", "rank99 at WD .1 - at WD 1" + SAME_PHASE, MORE,
          SWEEP),
    Claim("rank99-27", "WD 1.0: 27 directions", "rank99 at WD 1", Rule(24, 30), SWEEP),
    Claim("k95-11", "WD 1.0: k@95 is 11", "k@95 at WD 1", Rule(8, 14), SWEEP),
    Claim("survives-30", "WD .1 survives 30 removals", "k@95 at WD .1", Rule(low=30), SWEEP),
    Claim("company", "in company an operation breaks sooner (11 alone, 2 together)",
          "k@95 of add alone - in company", MORE, MULTITASK),
    Claim("k95-2", "k@95 of add in company is 2", "k@95 of add in company", Rule(1, 3), MULTITASK),
    Claim("orthogonal", "two operations settle in separate subspaces", "overlap at 10 - chance (10 / width)",
          Rule(high=0.0), MULTITASK),
    Claim("overlap-10", "overlap .28 at k = 10", "overlap at 10", Rule(0.28 - SHARE, 0.28 + SHARE), MULTITASK),
    Claim("overlap-30", "overlap .78 at k = 30", "overlap at 30", Rule(0.78 - SHARE, 0.78 + SHARE), MULTITASK),
    Claim("collateral", "10 directions removed from one leave the other at 99.9 %",
          "what the other keeps after 10 removed", Rule(low=0.99), MULTITASK),
    Claim("selective", "either operation can be killed while the other lives",
          "share of members: both killed below .5 with .99 of the other kept", Rule(low=0.5), MULTITASK),
    Claim("spreads", "training against removal spreads an operation over more directions",
          "rank95, adversarial / plain" + SAME_PHASE, SOONER, ADVERSARIAL),
    Claim("twice", "13 directions become 26", "rank95, adversarial / plain" + SAME_PHASE, Rule(1.5, 2.5), ADVERSARIAL),
    Claim("not-the-loss", "and not only because a loss was added",
          "rank95, adversarial / the same with random directions" + SAME_PHASE, SOONER, ADVERSARIAL),
    Claim("resists", "k@95 rises (3 to 14)", "k@95, adversarial - plain" + SAME_PHASE, MORE, ADVERSARIAL),
    Claim("entangles", "training against removal entangles (overlap .28 to .49)",
          "overlap at 10, adversarial - plain" + SAME_PHASE, MORE, ADVERSARIAL),
    Claim("capacity", "less capacity does not entangle (.27 against .28)",
          "overlap at 10, one layer - two layers" + SAME_PHASE, Rule(-SHARE, SHARE), CAPACITY),
    Claim("too-small", "1L d32 cannot learn both (4 %)", "held-out accuracy of 1L d32, its best initialisation",
          Rule(high=SHARE), CAPACITY),
    Claim("small-batch", "smaller batches grok sooner at fixed samples",
          "samples to grok, smallest batch / largest", Rule(high=1.0), BATCH),
    Claim("not-decay", "and not only because they are decayed more often",
          "the same with the decay per sample held", Rule(high=1.0), BATCH),
    Claim("geometry", "geometry predicts robustness to input attacks (left open)",
          "Spearman of k@95 and epsilon50 within weight decay", MORE, ROBUSTNESS),
    Claim("trilemma", "separable and robust exclude each other (pick two)",
          "Spearman of separability and k@95", Rule(high=0.0), TRILEMMA),
)  # fmt: skip

CONFOUNDS = {
    "sooner": "a member that has not grokked within its steps counts with its last step: the ratio is at least this",
    "32x": "initialisation: the log gives none, and WD 0 groks late from some, soon from others; the log itself gives "
    "45,700 and none",
    "sooner-fan-in": "the log gives no initialisation; from fan-in members grok when its own do (1,300 to 1,600)",
    "data": "a larger share has more steps per epoch at the same batch; grok steps lie on a grid of evaluations",
    "small-sooner": "the initialisation moves the order of sizes, and one size spans 400 to > 1,500 between seeds",
    "diffuse": "where a member at WD 0 has not grokked, its rank is that of another phase, not of another solution",
    "sweet-spot": "phase: k@95 moves by a factor of two or more within 1,000 steps after grokking; initialisation, "
    "size and phase move it from 1 to 36 at WD 1 alone",
    "sweet-fan-in": "phase; the log gives neither it nor the initialisation",
    "rank-decay": "phase after grokking: rank99 falls with time as memorised parts are cleaned up",
    "rank99-27": "initialisation: 16 to 46 at this size; the log does not give it, nor the step",
    "k95-11": "initialisation and phase: 6 to 36 at this size",
    "survives-30": "the log stops at 30: its number is censored",
    "company": "phase: both are read at the same time after grokking, but the pair trained many times longer",
    "k95-2": "k@95 or the number survived, one less: the log prints 2 and 3",
    "orthogonal": "any two operations that use a few dimensions of one subspace overlap at large k by construction",
    "overlap-10": "chance is 10 / 128 = .08",
    "overlap-30": "chance is 30 / 128 = .23; a used subspace of about 40 dimensions gives .78 by itself",
    "collateral": "width: at 64 dimensions 10 directions are a larger part than at 128",
    "selective": "k_max: what is not killed by then is counted as not",
    "spreads": "an added loss has larger steps whatever it protects: see the next row but one",
    "twice": "dose: members grok about 150 steps with this loss after it begins, the log's thousands; k and lambda are "
    "axes, and the log does not give k",
    "not-the-loss": "random directions hold less of what was learned, so that the control's loss is smaller",
    "resists": "k@95 also moves with phase; both arms are read at the same time after their own grok step",
    "entangles": "a higher rank raises overlap by itself, at the same width",
    "capacity": "layers and parameters change together",
    "too-small": "initialisation and steps: a failure within a step limit is no limit of capacity",
    "small-batch": "fixed samples give a small batch more steps and more decay; the learning rate is not adapted",
    "not-decay": "learning rate is not adapted to the batch",
    "geometry": "weight decay moves both; epsilon50 depends on the attack",
    "trilemma": "members were chosen by condition; the log defines none of its sides",
}
