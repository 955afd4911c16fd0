"""One seed for a run, and an independent named generator for each use of chance in it.

The stream of a name depends on the seed and the name alone: adding a new use of chance, or drawing more in
one place, changes nothing elsewhere.

>>> bool((generator(0, "bootstrap").random(3) == generator(0, "bootstrap").random(3)).all())
True
>>> bool((generator(0, "bootstrap").random(3) == generator(0, "permutation").random(3)).any())
False
"""

import hashlib

import numpy as np


def seed_for(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed from the run's seed and the name of its use (for libraries that take an int)."""
    text = "/".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the numpy generator of one named use of chance."""
    return np.random.default_rng(seed_for(seed, *names))
