"""Vectors of codes, as the embedded codec has them; tests/codecs/test_transformers_codec.py has the
others."""

from dataclasses import replace

import pytest
import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.registry import load_codec
from rvqlm.codecs.vectors import vectors_like
from rvqlm.errors import UserError


def test_vectors_of_the_embedded_codec():
    codec = load_codec("spectral", num_codebooks=3)
    vectors = vectors_like(codec.info)
    assert vectors.shape[:2] == (3, 1024) and vectors.dtype == torch.float32
    assert vectors.mean(1).abs().max() < 1e-5
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(1024, (4000, 3), generator=generator)
    sums = sum(vectors[k][codes[:, k]] for k in range(3))
    torch.testing.assert_close(sums.std(0), torch.ones(sums.shape[1]), atol=0.1, rtol=0)
    latents = codec.net.quantizer.decode(codes)
    latents = (latents - latents.mean(0)) / latents.std(0)  # the same but for shift and scale
    torch.testing.assert_close((sums - sums.mean(0)) / sums.std(0), latents, atol=1e-4, rtol=0)


def test_a_codec_that_is_not_at_hand_or_has_none(monkeypatch):
    with pytest.raises(UserError, match="nowhere"):
        vectors_like(CodecInfo("nowhere", "0" * 16, 16000, 320, 2, 16))
    info = load_codec("spectral").info
    with pytest.raises(UserError, match="codec mismatch"):
        vectors_like(replace(info, fingerprint="0" * 16))
    monkeypatch.setattr("rvqlm.codecs.spectral.SpectralCodec.code_vectors", lambda self: None)
    with pytest.raises(UserError, match="spectral are not known to be a sum"):
        vectors_like(info)
