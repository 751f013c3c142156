"""`AudioLM` is the family as the trainer makes it, by other names."""

import pytest
import torch
from saved_models import save_model

from rvqlm.batch import PAD
from rvqlm.codec_info import CodecInfo
from rvqlm.models import AudioLM
from rvqlm.models.factory import build_model

SHAPE = {"norm_first": False, "add_prenet": True, "nar_scale_factor": 0.5, "prepend_bos": True}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AudioLM(32, 2, 1, num_quantizers=3, codebook_size=16, **SHAPE).eval()


def test_weights_of_a_training_load(model, tmp_path):
    info = CodecInfo("music", "0123456789abcdef", 32000, 640, 3, 16)
    shape = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 1, **SHAPE}
    trained = build_model("audio-lm", shape, info).eval()
    path = save_model(trained, tmp_path / "best.pt")
    checkpoint = torch.load(path)
    model.load_state_dict(checkpoint["model"])
    prompts = torch.randint(16, (2, 7, 3))
    made = model.inference(prompts, torch.tensor([7, 7]), 9, temperature=0.8, top_k=5, seed=4)
    same = trained.generate(prompts, None, 9, 0.8, 5, min_new_frames=9, seed=4)
    assert torch.equal(made, same.codes) and made.shape == (2, 16, 3)


def test_each_prompt_goes_on_where_it_ends(model):
    prompts, lengths = torch.randint(16, (2, 7, 3)), torch.tensor([7, 4])
    made = model.inference(prompts, lengths, 5, temperature=1.0, top_k=-100, seed=1)
    assert made.shape == (2, 12, 3) and bool((made[0] >= 0).all())
    assert torch.equal(made[1, :4], prompts[1, :4])
    assert bool((made[1, :9] >= 0).all()) and bool((made[1, 9:] == PAD).all())


def test_draws_follow_the_random_state(model):
    def draw():
        return model.inference(torch.randint(16, (1, 7, 3)), torch.tensor([7]), 9)

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    assert torch.equal(draw(), first) and not torch.equal(first[:, 7:], second[:, 7:])
