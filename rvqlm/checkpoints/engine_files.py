"""What another engine needs of an exported model beside its weights: codec, symbols, a reference.

=============== ==================================================================================
codec_info.json name, fingerprint and rates of the codec
tokens.txt      symbols of a text by their ids, in the format of k2; text.json how they are made
bpe.model       where the symbols are pieces of words, of sentencepiece
reference.py    greedy decoding in plain PyTorch (`rvqlm.checkpoints.reference`)
README.md       how to use these
=============== ==================================================================================
"""

from __future__ import annotations

import base64
from pathlib import Path

from rvqlm.checkpoints import reference
from rvqlm.files import atomic_write, write_json, write_text
from rvqlm.frontends.symbols import SymbolTable


def write_engine_files(folder: Path, config: dict) -> None:
    """Write them beside ``config.json``, whose values these are."""
    codec = config["codec"]
    rates = {"frame_rate": codec["sampling_rate"] / codec["hop"]}
    write_json(folder / "codec_info.json", {**codec, **rates})
    if text := config["conditions"].get("text"):
        settings = dict(text["settings"])
        SymbolTable(dict(enumerate(settings.pop("symbols", [])))).to_file(folder / "tokens.txt")
        if model := settings.pop("model", None):
            with atomic_write(folder / "bpe.model") as file:
                file.write(base64.b64decode(model))
        write_json(folder / "text.json", settings)
    write_text(folder / "reference.py", Path(reference.__file__).read_text(encoding="utf-8"))
    write_text(folder / "README.md", _readme(config))


def _readme(config: dict) -> str:
    codec, missing = config["codec"], reference.uncovered(config)
    lines = [
        f"# {config['model_name']}, step {config['step']:,}",
        "",
        f"Makes codes of `{codec['name']}` (fingerprint `{codec['fingerprint']}`): "
        f"{codec['num_codebooks']} levels of {codec['codebook_size']} codes, "
        f"{codec['sampling_rate'] / codec['hop']:g} frames/s of audio at "
        f"{codec['sampling_rate']} Hz. Codes of another codec, or of its other weights, are noise.",
        "",
        "- `model.safetensors`, `config.json`: weights and all options; "
        '`rvqlm.from_pretrained(".")` reads them.',
        "- `codec_info.json`: the codec.",
    ]
    if config["conditions"].get("text"):
        lines.append(
            "- `tokens.txt`, `text.json`: the symbols of a text, and how one becomes them."
        )
    if missing:
        covers = f"does not cover {', '.join(missing)}, and says so"
    else:
        covers = "prints greedy codes, a line a frame: `python reference.py 50`, and behind a "
        covers += "prompt `python reference.py 50 prompt.npy`, (P, K) integers"
    lines.append(f"- `reference.py`: plain PyTorch and safetensors; {covers}.")
    return "\n".join(lines) + "\n"
