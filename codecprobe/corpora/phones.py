"""What the synthetic voices say: phones as acoustic targets, words as phones, and a pool of sentences.

Conventions: frequencies in Hz for a vocal tract of reference length; levels in dB relative to an open vowel. Formants
of vowels: Peterson and Barney (JASA 1952), men; consonants after Klatt (JASA 1980), simplified. The sentences are
pronounceable and mean nothing; every speaker draws from the same pool, so words do not tell who speaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

SILENCE = "sil"
OFF = -90.0  # dB: not sounding


@dataclass(frozen=True)
class Target:
    """The acoustic target of one phone.

    formants : first three resonances (Hz); higher ones belong to the voice.
    voicing, noise : levels (dB) of the glottal source and of frication.
    noise_hz : centre and width (Hz) of the frication band.
    length : relative duration.
    closure : share of the phone that is closed before its burst (stops), 0 for all others.
    """

    formants: tuple[float, float, float]
    voicing: float = 0.0
    noise: float = OFF
    noise_hz: tuple[float, float] = (2500.0, 4000.0)
    length: float = 1.0
    closure: float = 0.0


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        SILENCE: Target((500, 1500, 2500), OFF),
        "IY": Target((270, 2290, 3010), length=1.2),
        "IH": Target((390, 1990, 2550)),
        "EH": Target((530, 1840, 2480), length=1.1),
        "AE": Target((660, 1720, 2410), length=1.3),
        "AH": Target((640, 1190, 2390)),
        "AA": Target((730, 1090, 2440), length=1.3),
        "AO": Target((570, 840, 2410), length=1.2),
        "UH": Target((440, 1020, 2240)),
        "UW": Target((300, 870, 2240), length=1.2),
        "ER": Target((490, 1350, 1690), length=1.2),
        "W": Target((290, 610, 2150), -6),
        "R": Target((310, 1060, 1380), -6),
        "L": Target((310, 1050, 2880), -6),
        "M": Target((270, 1270, 2130), -10),
        "N": Target((270, 1740, 2470), -10),
        "HH": Target((500, 1500, 2500), OFF, -22, (1500, 2500), 0.8),
        "F": Target((340, 1100, 2080), OFF, -26, (4500, 7000)),
        "V": Target((340, 1100, 2080), -14, -32, (4500, 7000), 0.7),
        "TH": Target((320, 1290, 2540), OFF, -28, (5500, 5000)),
        "DH": Target((320, 1290, 2540), -12, -36, (5500, 5000), 0.6),
        "S": Target((320, 1390, 2530), OFF, -14, (5600, 1600), 1.2),
        "Z": Target((320, 1390, 2530), -14, -18, (5600, 1600)),
        "SH": Target((300, 1840, 2750), OFF, -12, (3300, 1400), 1.2),
        "P": Target((400, 1100, 2150), OFF, -22, (900, 1200), 0.9, 0.7),
        "T": Target((400, 1600, 2600), OFF, -18, (4200, 2500), 0.9, 0.65),
        "K": Target((300, 1990, 2850), OFF, -18, (1900, 900), 0.9, 0.65),
        "B": Target((300, 900, 2150), -24, -30, (900, 1200), 0.8, 0.8),
        "D": Target((300, 1700, 2600), -24, -26, (4000, 2500), 0.8, 0.8),
        "G": Target((250, 1990, 2850), -24, -26, (1900, 900), 0.8, 0.8),
    }
)
PHONES = tuple(TARGETS)

_WORDS = """
THE DH AH|RED R EH D|GREEN G R IY N|LITTLE L IH T AH L|SILVER S IH L V ER|HIDDEN HH IH D AH N|BUSY B IH Z IY
SUDDEN S AH D AH N|MODERN M AA D ER N|FOOLISH F UW L IH SH|WOODEN W UH D AH N|RIVER R IH V ER|SISTER S IH S T ER
GARDEN G AA R D AH N|MARKET M AA R K AH T|WATER W AO T ER|DOCTOR D AA K T ER|LETTER L EH T ER|FOREST F AO R AH S T
TEMPLE T EH M P AH L|KETTLE K EH T AH L|SHERIFF SH EH R AH F|MOTHER M AH DH ER|ROOF R UW F|COVERS K AH V ER Z
SEES S IY Z|LEFT L EH F T|PASSED P AE S T|KEPT K EH P T|HELD HH EH L D|MISSED M IH S T|PULLED P UH L D|LOVES L AH V Z
UNDER AH N D ER|AFTER AE F T ER|WITH W IH TH|BEFORE B IH F AO R
"""
WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {entry.split()[0]: tuple(entry.split()[1:]) for line in _WORDS.split("\n") for entry in line.split("|") if entry}
)
_NAMES = tuple(WORDS)
_ADJECTIVES = _NAMES[1:11]
_NOUNS = _NAMES[11:24]
_VERBS = _NAMES[24:33]
_PREPOSITIONS = _NAMES[33:]


def sentence(rng: np.random.Generator) -> str:
    """Draw one sentence: THE adjective noun verb THE adjective noun preposition THE noun."""
    first, second = rng.choice(_ADJECTIVES, 2, replace=False)
    nouns = rng.choice(_NOUNS, 3, replace=False)
    verb, preposition = rng.choice(_VERBS), rng.choice(_PREPOSITIONS)
    return f"THE {first} {nouns[0]} {verb} THE {second} {nouns[1]} {preposition} THE {nouns[2]}"


def phones_of(text: str) -> tuple[str, ...]:
    """Return the phones of a sentence of known words, with silence at both ends.

    >>> phones_of("THE ROOF")
    ('sil', 'DH', 'AH', 'R', 'UW', 'F', 'sil')
    """
    return (SILENCE, *(phone for word in text.split() for phone in WORDS[word]), SILENCE)
