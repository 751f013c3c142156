"""Judges whose weights a path gives, with small networks at random: what is read, that equal clips
are equal, and what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from judge_fixtures import TEXTS, clip, speech

from rvqlm.judging.judge import Nothing, NotRun, Options, Sound
from rvqlm.judging.recognizers import CtcJudge, WhisperJudge
from rvqlm.judging.sets import (
    ClapEmbeddings,
    CodecLatents,
    VggishEmbeddings,
    WavlmEmbeddings,
    vggish_bands,
)
from rvqlm.judging.speakers import ResemblyzerJudge, WavlmJudge
from rvqlm.judging.weights import load_into, state_of

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def given(name, path) -> Options:
    return Options(weights={name: str(path)}, language="en")


@pytest.fixture
def extractor(tmp_path):
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    return tmp_path


def test_wavlm(extractor):
    torch.manual_seed(0)
    config = transformers.WavLMConfig(
        **SMALL, tdnn_dim=(8, 8), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=8
    )
    transformers.WavLMForXVector(config).save_pretrained(extractor)
    judge = WavlmJudge(given("wavlm", extractor))
    assert judge.model == f"wavlm-{extractor.name}"
    voice = speech(TEXTS[0])
    assert judge.score(clip(voice, voice=voice))["similarity"].value == pytest.approx(1)
    other = judge.score(clip(speech(TEXTS[1]), voice=voice))["similarity"].value
    assert -1 <= other < 1
    frames = WavlmEmbeddings(given("wavlm-frames", extractor)).vectors(clip(voice))
    assert frames.shape[1] == 16 and abs(len(frames) - 50 * voice.seconds) < 2


def test_ctc(extractor):
    torch.manual_seed(0)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABC"]
    (extractor / "vocab.json").write_text(json.dumps({x: n for n, x in enumerate(letters)}))
    transformers.Wav2Vec2CTCTokenizer(str(extractor / "vocab.json")).save_pretrained(extractor)
    net = transformers.HubertForCTC(transformers.HubertConfig(**SMALL, vocab_size=len(letters)))
    with torch.no_grad():
        net.lm_head.weight.zero_()
        net.lm_head.bias.copy_(torch.tensor([0.0] * 5 + [1.0, 0, 0]))
    net.save_pretrained(extractor)
    judge = CtcJudge(given("ctc", extractor))
    assert judge.score(clip(speech(TEXTS[0]), text="a"))["wer"].value == 0
    assert judge.heard == "A"
    assert judge.score(clip(speech(TEXTS[0]), text="b c"))["wer"].value == 1


def test_clap(tmp_path):
    torch.manual_seed(0)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(tmp_path)
    audio = {
        "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2],
        "hidden_size": 16, "projection_dim": 8,
    }  # fmt: skip
    text = {
        "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "projection_dim": 8,
    }  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    transformers.ClapModel(config).save_pretrained(tmp_path)
    judge = ClapEmbeddings(given("clap", tmp_path))
    sound = speech(TEXTS[0])
    found = judge.vectors(clip(sound))
    assert found.shape == (1, 8) and np.isfinite(found).all()
    twice = judge.vectors(clip(Sound(np.tile(sound.audio, 7), sound.rate)))  # 13 s
    assert twice.shape == (2, 8)
    np.testing.assert_allclose(twice[0], found[0], atol=1e-4)  # as it is repeated


def naive_vggish_bands(audio: np.ndarray) -> np.ndarray:
    """By its definition, triangle by triangle."""
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = np.linspace(*(1127 * np.log(1 + np.array([125, 7500]) / 700)), 66)
    bins = 1127 * np.log(1 + np.arange(257) * 16000 / 512 / 700)
    rows = []
    for start in range(0, len(audio) - 399, 160):
        spectrum = np.abs(np.fft.rfft(audio[start : start + 400] * taper, 512))
        row = []
        for low, middle, high in zip(edges, edges[1:], edges[2:]):
            up, down = (bins - low) / (middle - low), (high - bins) / (high - middle)
            row.append(spectrum[1:] @ np.maximum(0, np.minimum(up, down))[1:])
        rows.append(np.log(np.array(row) + 0.01))
    count = len(rows) // 96
    return np.array(rows[: count * 96]).reshape(count, 96, 64)


def test_vggish_hears_the_bands_of_its_definition():
    audio = speech(TEXTS[0]).at(16000)[:17000]
    found = vggish_bands(audio)
    assert found.shape == (1, 96, 64)
    np.testing.assert_allclose(found, naive_vggish_bands(audio.astype(np.float64)), atol=1e-5)
    assert not len(vggish_bands(audio[:100]))


def test_missing_and_other_weights_are_not_run(tmp_path, monkeypatch):
    for kind in (CtcJudge, WhisperJudge, WavlmJudge, ClapEmbeddings, VggishEmbeddings):
        with pytest.raises(NotRun, match=f"no weights given: --weights {kind.name}=PATH"):
            kind(Options())
        with pytest.raises(NotRun):
            kind(given(kind.name, tmp_path))  # an empty folder
    with pytest.raises(NotRun, match="no codec"):
        CodecLatents(Options())
    monkeypatch.setattr("importlib.metadata.distribution", _not_installed)
    with pytest.raises(NotRun, match="pip install --no-deps Resemblyzer"):
        ResemblyzerJudge(Options())
    path = tmp_path / "weights.pt"
    torch.save({"model_state": {"linear.weight": torch.zeros(2, 2)}}, path)
    with pytest.raises(NotRun, match="another network's"):
        ResemblyzerJudge(given("resemblyzer", path))
    path.write_bytes(b"no weights")
    with pytest.raises(NotRun, match="cannot be read"):
        ResemblyzerJudge(given("resemblyzer", path))


def _not_installed(name):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_only_tensors_are_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.ones(1, 2), "bias": torch.ones(1), "more": torch.ones(3)}, path)
    net = load_into(torch.nn.Linear(2, 1), state_of(path.read_bytes(), "a.pt"), "a.pt")
    assert net.weight.tolist() == [[1, 1]] and not net.weight.requires_grad
    torch.save({"weight": np.dtype}, path)
    with pytest.raises(NotRun, match="cannot be read"):
        state_of(path.read_bytes(), "a.pt")


def test_a_moment_is_nothing():
    sound = Sound(np.zeros((1, 100), np.float32), 16000)

    class Still(ResemblyzerJudge):
        def load(self, options):
            self.model = "still"

        def embed(self, audio):
            return np.zeros(4)

    with pytest.raises(Nothing, match="less than"):
        Still(Options()).score(clip(sound, voice=sound))
    silence = Sound(np.zeros((1, 16000), np.float32), 16000)
    with pytest.raises(Nothing, match="silence"):
        Still(Options()).score(clip(silence, voice=silence))
