"""What codes sound like, for a model that is to know it before it learns anything."""

from __future__ import annotations

from torch import Tensor

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.registry import load_codec_like
from rvqlm.errors import UserError


def vectors_like(info: CodecInfo) -> Tensor:
    """Vectors of the codes of a codec that is on this machine, (K, V, D) float32: what each adds to
    what the decoder is given. Each dimension has variance 1 over frames of random codes.

    :raises UserError: the codec is not at hand, or the levels of its codes are no sum.
    """
    vectors = load_codec_like(info).code_vectors()
    if vectors is None:
        raise UserError(f"the codes of {info.name} are not known to be a sum of vectors")
    deviations = vectors.var(1).sum(0).sqrt()
    return vectors / deviations.clamp(min=1e-3 * float(deviations.max()))
