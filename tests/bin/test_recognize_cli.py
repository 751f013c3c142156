"""`rvqlm recognize` on sounds that spell: a recogniser of tones, samples that say the right or the
wrong thing, stored codes and codes through audio, mistakes."""

import json

import numpy as np
import pytest
import soundfile
import torch

import rvqlm.bin.main
import rvqlm.bin.recognize
from rvqlm.batch import Batch
from rvqlm.checkpoints.file import save_checkpoint
from rvqlm.codecs.chunking import encode_whole
from rvqlm.codecs.registry import load_codec
from rvqlm.data.index import TokenDataset
from rvqlm.data.ragged import write_ragged
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.inference.recognize import reference_of
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.factory import config_dict
from rvqlm.models.recognizer import Recognizer, RecognizerConfig
from rvqlm.reports.recognition import Recognition

LEVELS = 2
RATE = 16000
PITCH = {"a": 250, "b": 600, "c": 1300, "d": 2800}


def recognize(*words):
    return rvqlm.bin.recognize.main([str(w) for w in words])


def spell(text, rng):
    """A tone of 80 to 120 ms for each letter; text without doubled letters."""
    parts = []
    for letter in text:
        n = np.arange(round(RATE * rng.uniform(0.08, 0.12)))
        parts.append(0.3 * np.sin(2 * np.pi * PITCH[letter] * n / RATE + rng.uniform(0, 6)))
    return np.concatenate(parts).astype(np.float32)


def texts(number, rng):
    steps = rng.integers(1, 4, (number, 8)).cumsum(1) % 4
    return ["".join("abcd"[i] for i in row[: rng.integers(3, 8)]) for row in steps]


def save(model, folder):
    state = {
        "format": 3,
        "model": model.state_dict(),
        "ema": None,
        "model_name": model.name,
        "model_config": config_dict(model),
        "codec": model.info.to_dict(),
        "conditions": {k: c.to_dict() for k, c in model.conditions.items()},
        "config": {},
        "step": 60,
        "optimizer": [],
        "loader": {},
    }
    save_checkpoint(state, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def front_end():
    return TextFrontEnd(TextSettings("chars"), SymbolTable.of(["<space>", *PITCH]))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, front_end):
    """A recogniser that knows its letters."""
    rng = np.random.default_rng(0)
    codec = load_codec("spectral", num_codebooks=LEVELS)
    said = texts(64, rng)
    codes = [encode_whole(codec, torch.from_numpy(spell(t, rng))[None]).codes for t in said]
    ids = [torch.from_numpy(front_end.encode(t)) for t in said]
    torch.manual_seed(0)
    shape = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 1, "mask_share": 0.0}
    model = Recognizer(RecognizerConfig(**shape), codec.info, {"text": front_end.info(5.0)})
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(60):
        at = slice(step % 2, None, 2)
        out = model(Batch.from_codes(codes[at], conditions={"text": ids[at]}))
        optimizer.zero_grad()
        (out.loss / out.normalizer).backward()
        optimizer.step()
    return save(model, tmp_path_factory.mktemp("recognizer"))


@pytest.fixture
def samples(tmp_path):
    """What rvqlm generate leaves: eight samples of a text, one that says another, one of none."""
    folder, rng = tmp_path / "samples", np.random.default_rng(1)
    folder.mkdir()
    for n, text in enumerate([*texts(8, rng), "abab", "cdcd"]):
        soundfile.write(folder / f"s-{n}.wav", spell("dbcabd" if n == 8 else text, rng), RATE)
        about = {"kind": "conditioned", "conditions": {} if n == 9 else {"text": text}}
        (folder / f"s-{n}.json").write_text(json.dumps(about))
    return folder


def test_samples(experiment, samples, capsys):
    assert recognize("--recognizer", experiment, "--samples", samples) == 0
    out = capsys.readouterr()
    assert "left out: 1 sample without a text" in out.err
    result = json.loads((samples / "recognition.json").read_text())
    rows = {row["name"].rsplit("/", 1)[1]: row for row in result["rows"]}
    assert list(rows) == [f"s-{n}.wav" for n in range(9)]
    right = [rows[f"s-{n}.wav"] for n in range(8)]
    errors = sum(r["errors"] for r in right)
    assert errors <= 0.1 * sum(r["symbols"] for r in right)
    assert rows["s-8.wav"]["reference"] == "abab" and rows["s-8.wav"]["errors"] >= 3
    assert result["errors"] == errors + rows["s-8.wav"]["errors"]
    assert result["error_rate"] == result["errors"] / result["symbols"]
    assert result["interval"][0] <= result["error_rate"] <= result["interval"][1]
    assert result["chance"] > 0.5
    assert result["step"] == 60 and result["codec"]["num_codebooks"] == LEVELS
    assert result["command"].startswith("rvqlm recognize --recognizer ")
    lines = out.out.splitlines()
    assert (
        lines[0]
        == f"{samples}/s-0.wav  {right[0]['errors']} errors in {right[0]['symbols']} symbols"
    )
    assert lines[1] == f"  reference   {right[0]['reference']}"
    assert lines[2] == f"  recognized  {right[0]['recognized']}"
    assert f"error rate {result['error_rate']:.1%} (95 %: " in out.out

    # two by name, written elsewhere
    named = [samples / "s-8.wav", samples / "s-1.wav"]
    assert recognize("--recognizer", experiment / "best.pt", "--samples", *named,
                     "--out", samples / "two.json") == 0  # fmt: skip
    two = json.loads((samples / "two.json").read_text())
    assert two["rows"] == [rows["s-8.wav"], rows["s-1.wav"]]


@pytest.fixture
def tokens(tmp_path, front_end):
    """A token directory of three levels with text for all cuts but one."""
    rng, audio, folder = np.random.default_rng(2), tmp_path / "audio", tmp_path / "tokens"
    audio.mkdir()
    said = dict(zip((f"r{n}" for n in range(9)), texts(9, rng)))
    for name, text in said.items():
        soundfile.write(audio / f"{name}.wav", spell(text, rng), RATE)
    words = ["--input", audio, "--out-dir", folder, "--num-codebooks", LEVELS + 1, "--jobs", 1]
    run = lambda *w: rvqlm.bin.main.main([str(x) for x in w])  # noqa: E731
    assert run("tokenize", *words) == 0
    assert run("split", "--manifest-dir", folder, "--valid", 1, "--test", 6) == 0
    assert run("index", "--manifest-dir", folder) == 0
    dataset = TokenDataset.open(folder, "test")
    rows = [front_end.encode(said[name]) for name in dataset.ids()]
    rows[2] = rows[2][:0]
    write_ragged(folder / "text_test.bin", rows, 1, dataset.fingerprint)
    (folder / "text.json").write_text(json.dumps(front_end.info(5.0).to_dict()))
    return folder, {name: said[name] for n, name in enumerate(dataset.ids()) if n != 2}


def test_cuts_from_their_codes_and_through_audio(experiment, tokens, capsys):
    folder, said = tokens
    words = ["--recognizer", experiment, "--manifest-dir", folder]
    assert recognize(*words) == 0
    out = capsys.readouterr()
    assert "left out: 1 cut without a text" in out.err and "reference" not in out.out
    result = json.loads((experiment / "recognition_test.json").read_text())
    assert {row["name"]: row["reference"] for row in result["rows"]} == said
    assert [row["name"] for row in result["rows"]] == list(said)  # in the order of the index
    assert result["error_rate"] < 0.15 < result["chance"]
    assert (result["split"], result["through_audio"]) == ("test", False)

    assert recognize(*words, "--through-audio") == 0
    again = json.loads((experiment / "recognition_test_audio.json").read_text())
    assert again["through_audio"] and again["symbols"] == result["symbols"]
    assert again["error_rate"] < 0.25 < again["chance"]
    assert recognize(*words, "--num", 2, "--out", folder / "two.json") == 0
    assert json.loads((folder / "two.json").read_text())["rows"] == result["rows"][:2]


@pytest.fixture
def train_texts(tokens, front_end):
    """Writes the texts of the split to train on, all the same one."""

    def write(text):
        dataset = TokenDataset.open(tokens[0], "train")
        rows = [front_end.encode(text) if text else np.array([], int)] * len(dataset)
        write_ragged(tokens[0] / "text_train.bin", rows, 1, dataset.fingerprint)
        return len(dataset)

    return write


def test_a_bigram_is_heard_in_what_is_written_and_said(
    experiment, tokens, samples, train_texts, capsys
):
    folder = tokens[0]
    words = ["--recognizer", experiment, "--manifest-dir", folder]
    count = train_texts("adadadadadadadadadadadad")
    out = {w: folder / f"{w}.json" for w in ("0", "0.2", "30")}
    for weight, path in out.items():
        assert recognize(*words, "--bigram", weight, "--out", path) == 0
    shown = capsys.readouterr().out
    results = {weight: json.loads(path.read_text()) for weight, path in out.items()}
    greedy = results["0"]
    assert (greedy["decoding"], greedy["bigram"]) == ("greedy", None)
    assert results["0.2"]["decoding"] == "bigram"
    about = {"weight": 0.2, "from": str(folder), "split": "train", "texts": count}
    assert results["0.2"]["bigram"] == about
    assert shown.count(f"decoded with a bigram of {count} texts, weight ") == 2
    assert results["0.2"]["error_rate"] < 0.25
    # so heavy, it writes what it has read and hardly listens
    pairs = "".join(row["recognized"] + "|" for row in results["30"]["rows"])
    assert pairs.strip("|") and not {"b", "c"} & set(pairs)
    assert results["30"]["error_rate"] > greedy["error_rate"]

    # in files of their own: those of greedy transcripts, which reports show, stay
    assert recognize(*words, "--bigram", 0.2) == 0
    assert recognize("--recognizer", experiment, "--samples", samples,
                     "--bigram", 30, "--bigram-from", folder) == 0  # fmt: skip
    assert (experiment / "recognition_test_bigram.json").exists()
    assert not (samples / "recognition.json").exists()
    of_samples = json.loads((samples / "recognition_bigram.json").read_text())
    assert not {"b", "c"} & set("".join(row["recognized"] for row in of_samples["rows"]))
    label = Recognition.read(samples / "recognition_bigram.json", "samples").label
    assert label == "samples, decoded with a bigram"


def test_mistakes_about_bigrams(experiment, samples, tokens, train_texts, front_end, capsys):
    def mistake(*words):
        assert recognize("--recognizer", experiment, *words) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    folder = tokens[0]
    words = ["--manifest-dir", folder, "--bigram", 0.5]
    assert "--bigram -1.0: at least 0" in mistake(*words[:3], -1)
    assert "--bigram nan" in mistake(*words[:3], "nan")
    assert "give --bigram-from" in mistake("--samples", samples, "--bigram", 0.5)
    assert "give its weight" in mistake("--samples", samples, "--bigram-from", folder)
    assert "text_train.bin not found; run rvqlm text" in mistake(*words)
    train_texts("")
    assert "no cut of split 'train' has a text to count" in mistake(*words)
    train_texts("ab")
    other = TextFrontEnd(TextSettings("chars"), SymbolTable.of(["<space>", *"abdc"]))
    (folder / "text.json").write_text(json.dumps(other.info(5.0).to_dict()))
    elsewhere = mistake("--samples", samples, "--bigram", 0.5, "--bigram-from", folder)
    assert str(folder) in elsewhere and "best.pt" in elsewhere
    nowhere = mistake("--samples", samples, "--bigram", 0.5, "--bigram-from", folder / "no")
    assert str(folder / "no") in nowhere


def test_phonemes_of_a_cut_are_not_spoken_again(tmp_path):
    pytest.importorskip("espeakng_loader")
    symbols = ["<space>", *"abdehlnotuwəˈʊː"]
    front_end = TextFrontEnd(TextSettings("phonemes", punctuation=False), SymbolTable.of(symbols))
    expected = front_end.encode_phonemes("həlˈoʊ tˈuː").tolist()
    given = [
        {"text": "hello two"},
        {"phonemes": "həlˈoʊ tˈuː"},
        {"text": "another", "phonemes": "həlˈoʊ tˈuː"},
    ]
    for conditions in given:
        (tmp_path / "a.json").write_text(
            json.dumps({"kind": "conditioned", "conditions": conditions})
        )
        assert reference_of(tmp_path / "a.wav", front_end) == expected


def test_a_text_is_read_in_the_language_that_it_was_given_in(tmp_path):
    pytest.importorskip("espeakng_loader")
    front_end = TextFrontEnd(TextSettings("phonemes"), SymbolTable.of(["mʲ"[0], *"ʲˈir"]))
    conditions = {"text": "мир", "language": "Russian"}
    (tmp_path / "a.json").write_text(json.dumps({"kind": "conditioned", "conditions": conditions}))
    assert front_end.decode(reference_of(tmp_path / "a.wav", front_end)) == "mʲˈir"
    letters = TextFrontEnd(TextSettings("chars"), SymbolTable.of("мир"))
    assert letters.decode(reference_of(tmp_path / "a.wav", letters)) == "мир"


def test_mistakes_are_one_line_and_status_2(experiment, samples, tokens, tmp_path, capsys):
    def mistake(*words, recognizer=experiment):
        assert recognize("--recognizer", recognizer, *words) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("rvqlm recognize: error: ")
        return error

    folder = tokens[0]
    assert "give either --samples or --manifest-dir" in mistake()
    both = mistake("--samples", samples, "--manifest-dir", folder)
    assert "give either --samples or --manifest-dir" in both
    assert "--through-audio is for cuts" in mistake("--samples", samples, "--through-audio")
    assert "--num is for cuts" in mistake("--samples", samples, "--num", 3)
    assert "no such experiment" in mistake("--samples", samples, recognizer=tmp_path / "no")
    assert "0 wav files there" in mistake("--samples", tmp_path / "audio" / "..")
    assert "no such file" in mistake("--samples", samples / "no.wav")
    assert "no text in" in mistake("--samples", samples / "s-9.wav")
    assert "no folder" in mistake("--samples", samples, "--out", tmp_path / "no" / "x.json")
    (samples / "s-1.json").write_text(
        json.dumps({"kind": "conditioned", "conditions": {"text": "abx"}})
    )
    named = mistake("--samples", samples / "s-1.wav")
    assert "s-1.wav: text 'abx': no symbol for 'x'" in named
    (samples / "s-1.json").write_text("[]")
    assert "s-1.json is damaged" in mistake("--samples", samples)
    for path in samples.glob("*.json"):
        path.unlink()
    assert "none of which was given a text" in mistake("--samples", samples)
    assert "train.bin" in mistake("--manifest-dir", folder, "--split", "train")
    (folder / "text.json").unlink()
    assert "text.json not found" in mistake("--manifest-dir", folder)

    other = CodecLM(
        CodecLMConfig(decoder_dim=16, nhead=2, num_decoder_layers=1),
        load_codec("spectral", num_codebooks=LEVELS).info,
    )
    (tmp_path / "lm").mkdir()
    message = mistake("--samples", samples, recognizer=save(other, tmp_path / "lm"))
    assert "this is a codec-lm; train a recogniser" in message
    assert not list(samples.glob("*.json"))
