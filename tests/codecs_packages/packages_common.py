"""What the checks against the original packages share."""

import torch

from rvqlm.codecs.native import to_transformers
from rvqlm.codecs.native_checkpoint import read_native
from rvqlm.codecs.registry import load_codec


def noise(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    slow = torch.randn(*shape[:-1], shape[-1] // 50 + 2, generator=generator)
    envelope = torch.nn.functional.interpolate(slow, size=shape[-1], mode="linear")
    return torch.randn(*shape, generator=generator) * envelope.abs() * 0.3


def backends(path, package, folder, num_codebooks=None):
    """The three ways of loading one native file: through transformers' own format, directly, and
    through the package."""
    to_transformers(read_native(path)).save_pretrained(folder)
    found = {
        "transformers": load_codec(folder, num_codebooks=num_codebooks),
        "native": load_codec(path, num_codebooks=num_codebooks),
        "package": load_codec(f"package:{package}:{path}", num_codebooks=num_codebooks),
    }
    assert len({codec.info.fingerprint for codec in found.values()}) == 1
    geometry = {(c.info.hop, c.info.num_codebooks, c.info.segment) for c in found.values()}
    assert len(geometry) == 1
    assert type(found["package"].model).__module__.split(".")[0] == package
    return found
