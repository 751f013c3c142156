"""The speakers of the embedded corpus: espeak variants, each with an accent, a pace and a pitch.

A variant is a vocal tract (formants, voicing, roughness); an accent decides the phonemes. The
variants below are those that sound like a person: no whisper, croak, robot or strong echo, none
that speaks every syllable equally long. There are fewer women among them, who therefore appear
in four accents each. The table does not depend on any seed, so a speaker id always names the
same voice. Speakers of one variant are alike, so an honest test set holds out whole variants.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

ACCENTS = {
    "us": "en-us",
    "gb": "en-gb",
    "sc": "en-gb-scotland",
    "rp": "en-gb-x-rp",
    "la": "en-gb-x-gbclan",
    "wm": "en-gb-x-gbcwmd",
    "ca": "en-029",
    "ny": "en-us-nyc",
}
WOMEN = [
    *("Annie", "aunty", "belinda", "f1", "f2", "f3", "f4", "f5"),
    *("grandma", "linda", "shelby", "steph"),
]
MEN = [
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
    *("Alex", "Andy", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky"),
    *("Lee", "Mario", "Michael", "Mike", "Nguyen", "Reed", "adam", "benjamin"),
    *("boris", "david", "ed", "edward2", "gustave", "ian", "iven4", "john"),
    *("kaukovalta", "marcelo", "max", "michel", "miguel", "mike2", "norbert", "pablo"),
    *("paul", "quincy", "rob", "robert", "sandro", "travis", "victor"),
]


@dataclass(frozen=True)
class Speaker:
    id: str  # variant and accent, e.g. "f1-sc"
    variant: str
    voice: str  # language tag for espeak
    gender: str
    rate: int  # words per minute
    pitch: int  # 0 to 99
    pitch_range: int  # 0 to 99
    level: float  # usual level, dB of full scale


def all_speakers() -> list[Speaker]:
    """Every speaker, in a fixed order in which women and men alternate."""
    # neighbouring variants get different accents; a woman's four accents are spread over the eight
    tags = list(ACCENTS)
    women = [(v, tags[(i + 2 * j) % 8]) for j in range(4) for i, v in enumerate(WOMEN)]
    men = [(v, tags[(3 * i + i // 8) % 8]) for i, v in enumerate(MEN)]
    speakers = []
    for k in range(max(len(women), len(men))):
        if k < len(women):
            speakers.append(_speaker(*women[k], "female"))
        if k < len(men):
            speakers.append(_speaker(*men[k], "male"))
    return speakers


def _speaker(variant: str, accent: str, gender: str) -> Speaker:
    name = f"{variant}-{accent}"
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return Speaker(
        id=name,
        variant=variant,
        voice=ACCENTS[accent],
        gender=gender,
        rate=int(rng.integers(140, 201)),
        pitch=int(rng.integers(36, 65)),
        pitch_range=int(rng.integers(35, 76)),
        level=float(np.round(rng.uniform(-26.0, -20.0), 1)),
    )
