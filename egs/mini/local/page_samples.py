"""One sample of each experiment as a small Ogg file for the page of results.

    python egs/mini/local/page_samples.py --exp-dirs exp/compare/delay exp/compare/valle

The experiments' first sample of a name that all of them have, so that all continue one recording.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import soundfile

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError


@dataclass
class Flags:
    exp_dirs: tuple[str, ...]
    """Experiments, each with samples/*.wav."""
    out_dir: Path = Path("samples")
    """Folder for EXPERIMENT.ogg."""


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "page_samples.py", "Samples of experiments as small files.", argv)
    names = [{p.name for p in (Path(exp) / "samples").glob("*.wav")} for exp in flags.exp_dirs]
    if not (shared := set.intersection(*names)):
        raise UserError(f"no sample of one name in all of {', '.join(flags.exp_dirs)}")
    flags.out_dir.mkdir(parents=True, exist_ok=True)
    for exp in flags.exp_dirs:
        audio, rate = soundfile.read(Path(exp) / "samples" / min(shared), dtype="float32")
        path = flags.out_dir / f"{Path(exp).name}.ogg"
        soundfile.write(path, audio, rate, format="OGG", subtype="VORBIS")
        print(f"{path}  {len(audio) / rate:.1f} s, {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
