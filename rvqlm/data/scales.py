"""Scales that some codecs keep beside the codes (EnCodec at 48 kHz), read from the manifest."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import manifest_path, read_manifest


def stored_scales(
    manifest_dir: str | Path, split: str, info: CodecInfo, ids: set[str]
) -> dict[str, Tensor]:
    """Scales (n,) float32 of the cuts `ids` of a split; empty for codecs without any."""
    found = {}
    for cut in read_manifest(manifest_path(manifest_dir, split)) if info.segment else ():
        scales = (cut.get("custom") or {}).get("scales")
        if cut["id"] in ids and scales is not None:
            found[cut["id"]] = torch.tensor(scales, dtype=torch.float32)
    return found
