"""Random codecs in the published formats, names, rates and levels, with hardly any weights.

    python egs/shared/local/stand_in_codecs.py DIR facebook/encodec_32khz
    RVQLM_CODECS=DIR rvqlm tokenize --codec facebook/encodec_32khz ...

What they make of audio is noise: they let the stages of a recipe run where the real weights
are not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import transformers


def _dac() -> transformers.DacModel:
    return transformers.DacModel(
        transformers.DacConfig(
            encoder_hidden_size=2, decoder_hidden_size=16, downsampling_ratios=[2, 4, 8, 8],
            n_codebooks=9, codebook_size=1024, sampling_rate=44100,
        )
    )  # fmt: skip


def _encodec(**config) -> transformers.EncodecModel:
    model = transformers.EncodecModel(
        transformers.EncodecConfig(num_filters=2, hidden_size=8, **config)
    )
    # as new they are zero, and every code would be the first: spread like what the encoder gives
    noise = torch.randn(1, 1, config["sampling_rate"]) * torch.linspace(
        0, 0.3, config["sampling_rate"]
    )
    with torch.no_grad():
        heard = model.eval().encoder(noise)[0]  # (D, T)
    centre, spread = heard.mean(1), heard.std(1)
    for level, layer in enumerate(model.quantizer.layers):
        table = layer.codebook.embed
        table.normal_().mul_(spread * 0.6**level).add_(centre if level == 0 else 0)
        layer.codebook.embed_avg.copy_(table)
    return model


CODECS = {
    "descript/dac_44khz": _dac,
    "facebook/encodec_32khz": lambda: _encodec(
        upsampling_ratios=[8, 5, 4, 4], codebook_size=2048, sampling_rate=32000,
        target_bandwidths=[2.2], use_causal_conv=False,
    ),
    "facebook/encodec_24khz": lambda: _encodec(
        upsampling_ratios=[8, 5, 4, 2], codebook_size=1024, sampling_rate=24000,
        target_bandwidths=[6.0],
    ),
}  # fmt: skip


def make(folder: Path, name: str) -> Path:
    """Write the stand-in of `name` to ``folder/name``, unless it is there; returns its path."""
    path = folder / name
    if not (path / "model.safetensors").exists():
        torch.manual_seed(0)
        CODECS[name]().save_pretrained(path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what RVQLM_CODECS is set to afterwards")
    parser.add_argument("names", nargs="+", choices=sorted(CODECS), metavar="NAME")
    args = parser.parse_args()
    for name in args.names:
        print(make(args.folder, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
