"""Operations of models counted by hand, and what they are measured against."""

import pytest
import torch
from torch import nn

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.training.flops import forward_flops, peak_flops


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 5)

    def forward(self, batch):
        return self.linear(batch)


def test_operations_of_a_linear_layer():
    model = Linear().train()
    assert forward_flops(model, torch.randn(3, 11, 7)) == 2 * 3 * 11 * 7 * 5
    assert model.training and model.linear.weight.grad is None


def test_operations_of_a_transformer():
    info = CodecInfo("x", "", 16000, 320, num_codebooks=3, codebook_size=32)
    d, L, T, B = 16, 2, 20, 2
    config = CodecLMConfig(pattern="parallel", decoder_dim=d, nhead=2, num_decoder_layers=L)
    model = CodecLM(config, info)
    batch = Batch.from_codes([torch.randint(32, (T, 3)) for _ in range(B)])
    S = T + 1  # the end is a decision of its own
    inner = config.feedforward(d)
    per_step = L * (d * 3 * d + d * d + 2 * d * inner) + 3 * 32 * d
    attention = L * 2 * S * S * d
    expected = 2 * B * (S * per_step + attention)
    assert forward_flops(model, batch) == pytest.approx(expected, rel=0.02)


def test_peak_of_a_cpu_is_measured():
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8
