"""Models that are told when symbols are said follow them to the frame, and learn to say them."""

from dataclasses import replace

import pytest
import torch

from rvqlm.batch import Batch, Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.generation.request import make_request
from rvqlm.generation.sampling import SpeechConfig
from rvqlm.models.factory import build_model
from rvqlm.modules.durations import durations_of, times_of

V = 12
INFO = CodecInfo("toy", "0" * 16, 16000, 320, 2, V)
TEXT = ConditionInfo("text", (8,), rate=2.5, aligned=True)
SILENCE, STEPS = 10, 200
LASTS = torch.tensor([2.0, 1.0, 3.0, 2.0, 4.0, 1.0, 3.0, 2.0])
"""Frames of each symbol."""
CASES = {
    "codec-lm": {"pattern": "delay"},
    "masked": {"masking": "frame", "mask_schedule": "uniform"},
    "valle": {"prepend_bos": True, "prompt_mode": "none"},
}


def spoken(text, lasts):
    """Codes (T, 2) that say at each frame which symbol is said there, two of silence around, and
    its times."""
    quiet = torch.full((2,), SILENCE)
    level0 = torch.cat([quiet, text.repeat_interleave(lasts.long()), quiet])
    times = times_of(torch.cat([torch.tensor([2.0]), lasts])[None])[0]
    return torch.stack([level0, (level0 * 5 + 1) % V], 1), times


def texts(number, generator):
    return [torch.randint(8, (6,), generator=generator) for _ in range(number)]


def trained(name):
    """On random texts whose symbols mostly last as long as they do, and else anything: what is told
    counts, and what is typical is learnt."""
    torch.manual_seed(0)
    shape = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 1, "conditions": ("text",)}
    shape |= {"fusion": "spread", "condition_dropout": 0.0, **CASES[name]}
    model = build_model(name, shape, INFO, {"text": TEXT}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        given = texts(12, generator)
        any_ = torch.randint(1, 5, (12, 6), generator=generator).float()
        typical = torch.rand(12, 6, generator=generator) < 0.75
        lasts = torch.where(typical, LASTS[torch.stack(given)], any_)
        made = [spoken(text, frames) for text, frames in zip(given, lasts)]
        batch = Batch.from_codes([codes for codes, _ in made])
        batch.conditions = {"text": Padded.of(given, 1, [times for _, times in made])}
        out = model(batch)
        optimizer.zero_grad()
        (out.loss / out.normalizer).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def durations_told(model, given, rows=None, durations=None, **speech):
    """(B, 1 + S) frames of a request's symbols, after the model placed them."""
    request = make_request(
        INFO, torch.device("cpu"), max_new_frames=20, conditions={"text": Padded.of(given, 1)},
        batch_size=len(given), speech=SpeechConfig(**speech), durations=durations, seed=3,
        rows=rows,
    )  # fmt: skip
    with torch.no_grad():
        return durations_of(model.place_text(request).conditions["text"].times)


@pytest.mark.parametrize("name", CASES)
def test_codes_follow_the_symbols_of_an_unseen_text(name):
    model = trained(name)
    generator = torch.Generator().manual_seed(99)
    given = texts(10, generator)
    lasts = torch.randint(1, 5, (10, 6), generator=generator).float()
    wanted = [spoken(text, frames)[0] for text, frames in zip(given, lasts)]
    limits = torch.tensor([len(codes) for codes in wanted])
    made = model.generate(
        conditions={"text": Padded.of(given, 1)}, limits=limits, min_frames=limits, temperature=0,
        durations=torch.cat([torch.full((10, 1), 2.0), lasts], 1), max_frames=99,
    )  # fmt: skip
    right = torch.cat([a == b for a, b in zip(made.items(), wanted)]).float().mean()
    assert right > 0.98
    # not told, it says what is typical: the bins are 14 % wide
    told = durations_told(model, given)
    typical = torch.cat([torch.full((10, 1), 2.0), LASTS[torch.stack(given)]], 1)
    assert ((told / typical).log().abs() < 0.15).float().mean() > 0.95
    torch.testing.assert_close(durations_told(model, given, speed=2.0) * 2, told)
    # drawn: the same in any batch, and by row; what is given stays
    drawn = durations_told(model, given, duration_temperature=1.0)
    alone = durations_told(model, [given[4][:5]], rows=[4], duration_temperature=1.0)
    longer = durations_told(
        model, [given[0], given[4][:5]], rows=[0, 4], duration_temperature=1.0
    )  # padded
    torch.testing.assert_close(longer[1, :6], alone[0])
    torch.testing.assert_close(longer[0], drawn[0], rtol=1e-4, atol=1e-4)
    assert longer[1, 6].isnan() and not torch.allclose(drawn, told)
    some = torch.full((10, 7), torch.nan).index_fill_(1, torch.tensor([3]), 9.0)
    kept = durations_told(model, given, durations=some)
    assert torch.allclose(kept[:, 3], torch.tensor(9.0), atol=1e-5)
    torch.testing.assert_close(kept[:, 4:], told[:, 4:], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"durations of shape \(10, 6\), wanted \(10, 7\)"):
        durations_told(model, given, durations=some[:, 1:])


def test_a_model_that_was_not_told_refuses_times():
    model = build_model(
        "codec-lm",
        {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "conditions": ("text",)},
        INFO,
        {"text": replace(TEXT, aligned=False)},
    )
    given = Padded.of([torch.tensor([1, 2])], 1, [torch.tensor([[0.0, 1.0], [1.0, 2.0]])])
    for options in (
        {"conditions": {"text": given}},
        {"speech": SpeechConfig(speed=2.0)},
        {"durations": torch.ones(1, 3)},
    ):
        with pytest.raises(UserError, match="trained without rvqlm align"):
            model.generate(max_frames=4, **options)
