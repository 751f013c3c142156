"""rvqlm check on a model that says what it should, and on one with each fault planted in turn."""

import json

import numpy as np
import pytest
import soundfile
import torch
from token_fixtures import make_tokens

import rvqlm.bin.check
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.data.index import TokenDataset
from rvqlm.data.ragged import write_ragged
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.generation.request import Generation
from rvqlm.inference.model_args import ModelArgs
from rvqlm.inference.recognize import reference_of
from rvqlm.judging import check_samples
from rvqlm.metrics.recognition import Recognized
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.recognizer import Recognizer, RecognizerConfig

INFO = CodecInfo("tones", "0" * 16, 8000, 160, 2, 8)
PITCH = {1: 300, 2: 700, 3: 1300, 4: 2100}  # Hz of the letters a to d; 0 is silence
FRONT_END = TextFrontEnd(TextSettings("chars"), SymbolTable.of(["<space>", *"abcd"]))
HOLD = 4  # frames of a letter
VOICE, LOUD = (1, 2, 3), 7  # codes of level 1: how loud


class Tones(Codec):
    """A letter a frame on level 0, its loudness on level 1."""

    decode_context_frames = 0

    def __init__(self):
        super().__init__(INFO)

    def encode(self, audio, lengths=None):
        raise NotImplementedError

    def decode(self, codes):
        t = torch.arange(INFO.hop) / INFO.sampling_rate
        hz = torch.tensor([0, *PITCH.values(), 0, 0, 0])[codes[..., 0]]
        loud = torch.tensor([0.0, 0.1, 0.11, 0.12, 0.1, 0.1, 0.1, 0.9])[codes[..., 1]]
        tones = loud[..., None] * torch.sin(2 * torch.pi * hz[..., None] * t)
        return tones.flatten(1)[:, None]

    def code_vectors(self):
        return torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))


def letters(ids) -> list[int]:
    """Letters 1 ... 4 of ids of the table, 0 for a space."""
    return [max(0, int(i) - 1) for i in ids]


def script(said: list[int], seed: int = 0) -> np.ndarray:
    """(T, 2) codes of letters, each held, with silence after each."""
    rng, rows = np.random.default_rng(seed), []
    for letter in said:
        rows += [(letter, rng.choice(VOICE)) for _ in range(HOLD if letter else 3)] + [(0, 1)]
    return np.array(rows, int).reshape(-1, 2)


def hear(wavs, listener, codec, device) -> list[Recognized]:
    """A recogniser that makes no mistakes."""
    found = []
    for wav in wavs:
        audio, rate = soundfile.read(wav)
        heard, last = [], 0
        for frame in audio[: len(audio) // INFO.hop * INFO.hop].reshape(-1, INFO.hop):
            hz = np.abs(np.fft.rfft(frame)).argmax() * rate / INFO.hop
            near = min(PITCH, key=lambda letter: abs(PITCH[letter] - hz))
            now = near if np.abs(frame).max() > 0.02 else 0
            heard += [now + 1] if now and now != last else []
            last = now
        found.append(Recognized(str(wav), reference_of(wav, FRONT_END), heard))
    return found


class Speller(CodecLM):
    """Says its text, with a fault."""

    fault = ""

    def generate(self, prompt_codes, prompt_lengths, limits, conditions, rows, **_):
        items, text = [], conditions.get("text")
        for n, row in enumerate(rows):
            given = prompt_codes[n, : int(prompt_lengths[n])].numpy()
            ids = [2, 3, 4, 5, 3, 5] * 50  # without a text
            if text is not None:
                ids = text.values[n, : int(text.lengths[n]), 0].tolist()
            said = self.spoil(letters(ids), long=len(ids) > 60)
            codes = np.concatenate([given, script(said, row)[len(given) :]])[: int(limits[n])]
            items.append(torch.from_numpy(self.disturb(codes, len(given))))
        lengths = torch.tensor([len(i) for i in items])
        codes = torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=-1)
        stop = ["length" if len(i) >= m else "eos" for i, m in zip(items, limits.tolist())]
        return Generation(codes, lengths, prompt_lengths, stop)

    def spoil(self, said: list[int], long: bool) -> list[int]:
        spoiled = {
            "stutter": said[:2] + said,
            "ending": said + said[-3:],
            "word": [*said[:1], 4, 2, 4, 2, 1, *said[1:]],
            "wrong": [1 + letter % 4 if letter else 0 for letter in said],
            "endless": said + [4, 1] * 200,
            "half": said[: len(said) // 2] if long else said,
        }
        return spoiled.get(self.fault, said)

    def disturb(self, codes: np.ndarray, given: int) -> np.ndarray:
        if self.fault == "burst":
            codes[given : given + 2] = 1, LOUD
        if self.fault == "silence":
            codes[given:] = 0
        if self.fault == "loop":
            codes[given:] = codes[given]
        if self.fault == "drift" and len(codes) > 200:
            codes[-len(codes) // 3 :, 1] = 4
        return codes


FAULTS = {
    "": set(),
    "stutter": {"no stutter", "short texts, exactly"},
    "ending": {"nothing behind the end", "short texts, exactly"},
    "word": {"no word too many", "short texts, exactly"},
    "wrong": {"errors, sentence", "errors behind 0.2 s", "a long text to its end"},
    "half": {"a long text to its end"},
    "endless": {"ends where its text does", "nothing behind the end"},
    "burst": {"burst after a prompt", "burst at the beginning"},
    "silence": {"silence"},
    "loop": {"loops"},
    "drift": {"voice does not drift"},
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("tokens"), np.random.default_rng(0)
    texts = []
    for _ in range(8):
        words = [rng.integers(1, 4, 5).cumsum() % 4 for _ in range(3)]
        texts.append(" ".join("".join("abcd"[i] for i in word) for word in words))
    ids = [FRONT_END.encode(text)[:, None] for text in texts]
    given = [script(letters(i[:, 0]), 100 + n) for n, i in enumerate(ids)]
    make_tokens(folder, [len(g) for g in given], INFO, split="test", speakers=1, given=given)
    dataset = TokenDataset.open(folder, "test")
    write_ragged(folder / "text_test.bin", ids, 1, dataset.fingerprint)
    (folder / "text.json").write_text(json.dumps(FRONT_END.info(4.8).to_dict()))
    return folder


@pytest.fixture
def check(tokens, tmp_path, monkeypatch):
    def run(fault: str, *flags, told: bool = True) -> dict[str, dict]:
        info = {"text": FRONT_END.info(4.8)} if told else {}
        shape = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1}
        model = Speller(CodecLMConfig(**shape, conditions=tuple(info)), INFO, info)
        model.fault = fault
        listener = Recognizer(RecognizerConfig(**shape), INFO, {"text": FRONT_END.info(4.8)})
        loaded = {"exp": model, "listener": listener}
        monkeypatch.setattr(
            ModelArgs, "load",
            lambda self, exp: (loaded[exp], tmp_path / exp, {"step": 5}, torch.device("cpu")),
        )  # fmt: skip
        monkeypatch.setattr(check_samples, "recognize_samples", hear)
        monkeypatch.setattr(rvqlm.bin.check, "load_codec_like", lambda *_: Tones())
        out = tmp_path / "out"
        words = ["exp", "--manifest-dir", tokens, "--out-dir", out, "--num", "3"]
        words += ["--prompt-seconds", "0.2", "--seconds", "3", "--long-seconds", "8"]
        status = rvqlm.bin.check.main([*map(str, words), *flags])
        found = json.loads((out / "check.json").read_text())["checks"]
        failed = [c["name"] for c in found if c["verdict"] == "fail"]
        assert status == (1 if failed else 0)
        return {c["name"]: c for c in found}

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen(fault, check, tmp_path, capsys):
    found = check(fault, "--recognizer", "listener")
    failed = {name for name, c in found.items() if c["verdict"] == "fail"}
    assert failed >= FAULTS[fault]
    if not fault:
        assert not failed and all(c["verdict"] == "pass" for c in found.values())
    out = capsys.readouterr().out
    for name in FAULTS[fault]:  # the sample to hear is there
        assert (tmp_path / "out" / found[name]["sample"]).is_file()
        assert f"fail     {name}" in out
    if fault in ("drift", "half"):  # and nothing else is blamed
        assert failed == FAULTS[fault]


def test_a_text_is_said_whole_whatever_the_length_of_continuations(check, tmp_path):
    """And no sample takes the place of another's."""
    found = check(
        "", "--recognizer", "listener", "--seconds", "0.5", "--prompt-seconds", "0.2", "0.4"
    )
    spoken = [c for name, c in found.items() if name.startswith("errors")]
    assert len(spoken) == 6 and all(c["verdict"] == "pass" and c["value"] == 0 for c in spoken)
    names = [path.name for path in (tmp_path / "out").glob("*.wav")]
    for kind in ("behind-0.2s-", "behind-0.4s-", "continuation-", "recording-", "two-"):
        assert sum(name.startswith(kind) for name in names) == 3


def test_what_cannot_be_run_says_why(check, capsys):
    found = check("")
    assert found["no stutter"]["found"] == "give --recognizer"
    assert found["voice does not drift"]["verdict"] == "pass"
    assert "7 not run" in capsys.readouterr().out
    found = check("", "--prompt-seconds", "9", told=False)
    assert {c["verdict"] for c in found.values()} == {"not run"}
    found = check("loop", told=False)
    assert found["no stutter"]["found"] == "the model is told no text"
    assert found["loops"]["verdict"] == "fail"
    flags = ("--long-seconds", "0", "--recognizer", "listener", "--prompt-seconds", "0.2", "9")
    found = check("", *flags)
    assert found["errors behind 0.2 s"]["verdict"] == "pass"
    for name in ("loops", "errors behind 9 s"):
        assert found[name]["verdict"] == "not run" and "lower --prompt" in found[name]["found"]
    assert found["voice does not drift"]["found"] == "--long-seconds 0"
    assert found["a long text to its end"]["verdict"] == "not run"


def test_words_of_a_text():
    checks = object.__new__(check_samples.SampleMaker)
    checks.table = FRONT_END.table
    ids = FRONT_END.encode("ab cd dc").tolist()
    assert FRONT_END.decode(checks.first_words(ids, 2)) == "ab cd"
    assert FRONT_END.decode(checks.joined([ids, ids])) == "ab cd dc ab cd dc"
    pieces = TextFrontEnd(TextSettings("chars"), SymbolTable.of(["▁ab", "c", "▁d", "."])).table
    checks.table = pieces
    assert checks.first_words([1, 2, 3, 4], 1) == [1, 2]
    assert checks.first_words([1, 2, 3, 4], 2) == [1, 2, 3]
    assert checks.joined([[1], [3]]) == [1, 3]
