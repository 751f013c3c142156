#!/usr/bin/env python3
"""``rvqlm train`` with the settings of conf/audio_lm.yaml beneath its flags, where the model is that
and no ``--config`` is given: ScaledAdam, Eden, and prompts of 40 %.

    python3 bin/trainer.py --model-name audio-lm --base-lr 0.05 --exp-dir exp/audio-lm \
        --manifest-dir data/tokenized
"""

import sys
from pathlib import Path

from rvqlm.bin.trainer import main
from rvqlm.cli import peek

argv = sys.argv[1:]
given = any(word.split("=")[0] == "--config" for word in argv)
if not given and peek(argv, "model-name", "") == "audio-lm":
    argv += ["--config", str(Path(__file__).parents[1] / "conf" / "audio_lm.yaml")]
sys.exit(main(argv))
