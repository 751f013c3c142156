"""The codes of a model do not depend on how many threads draw them."""

import pytest
import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.cores import FasterThreads
from rvqlm.models.factory import build_model, model_entry

INFO = CodecInfo("demo", "", 16000, 320, num_codebooks=3, codebook_size=32)


@pytest.mark.parametrize("name", ["codec-lm", "masked", "valle"])
def test_codes_are_those_of_any_number_of_threads(name):
    torch.manual_seed(0)
    config = model_entry(name)[0](decoder_dim=64, nhead=2, num_decoder_layers=2)
    model = build_model(name, config, INFO, {}).eval()
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            options = {"max_new_frames": 12, "min_new_frames": 12, "seed": 1, "batch_size": 2}
            update = FasterThreads(number).watching(lambda steps: None)
            found.append(model.generate(**options, progress=update).codes)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
