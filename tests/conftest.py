"""Settings for all tests: one thread, because tiny tensors gain nothing from more and lose much
when several processes share the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
import tqdm

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--cuda-simulated", action="store_true", help="tests of GPUs without a GPU")


# its monitor is a thread that holds a lock at times: a copy of the process made then waits for ever
tqdm.tqdm.monitor_interval = 0

LONG = (
    "test_readme.py",
    "egs/test_mini_run.py",
    "tokenizing/test_tokenize_resume.py",
    "egs/test_custom_tts.py",
    "egs/test_custom_run.py",
    "egs/test_libritts.py",
    "egs/test_ljspeech.py",
    "egs/test_jazz.py",
    "egs/test_piano.py",
    "audio/test_augment.py",
    "training/test_faults.py",
    "training/test_trainer_ranks.py",
    "tools/test_entropy_source.py",
)
"""Files that take longest, the longest first: begun last, one would keep one worker busy when the
others are done."""


def pytest_collection_modifyitems(config, items):
    order = {Path(__file__).parent / name: n for n, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
    if not (torch.cuda.is_available() or config.getoption("--cuda-simulated")):
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(autouse=True)
def _gpu(request):
    """Tests with the mark run on a simulated GPU where that is asked for."""
    if "cuda" not in request.keywords or not request.config.getoption("--cuda-simulated"):
        yield
        return
    from simulated_cuda import simulated_cuda

    with simulated_cuda():
        yield
