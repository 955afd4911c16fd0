"""Train two small members that grok addition modulo 31, and remove what they learned direction by direction.

Its own directions break a member after a few removals; as many random ones do not.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from lmprobe.grokking.abliterate import abliterate, train_members
from lmprobe.grokking.setting import Setting
from lmprobe.grokking.spec import Spec

spec = Spec(p=31, layers=1, width=64, fraction=0.8, batch=256, steps=1500, evaluate_every=50, extra=200)
with TemporaryDirectory() as folder:
    setting = Setting(n_seeds=2, folder=Path(folder), jobs=1, device="cpu")
    print(train_members(setting, spec=spec))
    result = abliterate(setting, run=folder, after=200, k_max=30)
print(result)

row = next(row for row in result.rows if row["metric"] == "k@95")
assert row["n_seeds"] == 2, "both members grokked"
assert row["value"] < row["control"], "its own directions matter more than random ones"
