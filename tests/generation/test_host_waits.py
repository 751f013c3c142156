"""How often decoding waits for a GPU: never for a frame or a pass."""

import gpu_checks as checks
import pytest
from families import make, random_batch
from simulated_cuda import simulated_cuda

from rvqlm.generation.request import DemaskConfig
from rvqlm.generation.steps import BLOCK

FRAMES = 2 * BLOCK


def waits(model, **options) -> int:
    """Of a request; what is copied once has been."""
    batch = random_batch(model, [6, 6]).to("cuda")
    options |= {"conditions": batch.conditions, "max_frames": options["min_frames"]}
    model.generate(batch.codes[:, :2], **options)
    return sum(checks.waited(lambda: model.generate(batch.codes[:, :2], **options)).values())


@pytest.mark.parametrize("case", ["delay", "valle"])
def test_frames_are_asked_about_in_blocks(case):
    with simulated_cuda():
        model = make(case).eval().cuda()
        few, many = (waits(model, min_frames=2 + n) for n in (FRAMES, 2 * FRAMES))
    assert many - few == FRAMES // BLOCK  # whether all have ended


@pytest.mark.parametrize("case", ["masked-frame-spread", "masked-prompt-cross", "masked"])
def test_passes_are_made_without_asking(case):
    with simulated_cuda():
        model = make(case).eval().cuda()
        few, many = (
            waits(model, min_frames=12, demask=DemaskConfig(steps=steps)) for steps in (2, 6)
        )
    assert many == few
