import pytest
from tokenize_fixtures import Peaks, make_audio

from rvqlm.tokenizing import tokenize
from rvqlm.tokenizing import workers as token_workers


@pytest.fixture
def peaks(monkeypatch):
    """`rvqlm tokenize` finds the toy codec under every name, and no torchrun around it."""

    def load(name, device, num_codebooks, dtype):
        return Peaks(name[-1] * 16, channels=2 if "stereo" in name else 1)

    for module in (tokenize, token_workers):
        monkeypatch.setattr(module, "load_codec", load)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return Peaks


@pytest.fixture
def corpus(tmp_path):
    return make_audio(tmp_path / "audio")
