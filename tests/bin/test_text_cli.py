"""``rvqlm text``: columns that say what the manifests say, once, and of one table only."""

import gzip
import json

import numpy as np
import pytest
from text_fixtures import FRAMES, make_texts

from rvqlm.bin.text import main
from rvqlm.condition_info import ConditionInfo
from rvqlm.data.conditions import ConditionSet, load_info
from rvqlm.data.index import TokenDataset, build_index
from rvqlm.data.plan import Items
from rvqlm.data.ragged import Ragged
from rvqlm.frontends import text_prepare
from rvqlm.frontends.phonemes import speak, strip_marks
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd
from rvqlm.frontends.text_config import digest

TRAIN = ["Hello, world!", "the quick brown fox jumps", "over a lazy dog?", None, "Ab. cd"]
VALID = ["a dog", "Hello!"]


@pytest.fixture
def tokens(tmp_path):
    make_texts(tmp_path / "tokens", train=TRAIN, valid=VALID)
    return tmp_path / "tokens"


def run(capsys, directory, *flags) -> str:
    """stdout of a run that succeeds."""
    status = main(["--manifest-dir", str(directory), *flags])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def fail(capsys, directory, *flags) -> str:
    """The line that a run ends in which fails."""
    before = contents(directory)
    assert main(["--manifest-dir", str(directory), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rvqlm text: error: ") and err.count("\n") == 1
    assert contents(directory) == before  # nothing is changed, nothing temporary left
    return err


def contents(directory) -> dict:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}


def skipped(directory, split="train") -> dict[str, str]:
    """Reasons by cut."""
    lines = (directory / f"text_skipped_{split}.jsonl").read_text().splitlines()
    return {row["id"]: row["reason"] for row in map(json.loads, lines)}


def decoded(directory, split="train") -> list[str]:
    front_end = TextFrontEnd.from_info(load_info(directory, "text", ""))
    dataset = TokenDataset.open(directory, split)
    column = Ragged.open(directory / f"text_{split}.bin", dataset.fingerprint)
    assert len(column) == len(dataset)
    return [front_end.decode(column.read(row)) for row in range(len(column))]


def test_chars_say_what_the_manifest_says(tokens, capsys):
    out = run(capsys, tokens, "--type", "chars")
    assert decoded(tokens) == [text or "" for text in TRAIN]
    assert decoded(tokens, "valid") == VALID
    info = load_info(tokens, "text", "")
    letters = sorted(set("".join(t or "" for t in TRAIN)) - {" "})
    assert info.settings["symbols"] == ["<eps>", "<space>", *letters]
    assert info.settings["normalization"] == 1
    assert SymbolTable.from_file(tokens / "tokens.txt").symbols == sorted(info.settings["symbols"])
    assert info.kind == "text" and info.sizes == (len(letters) + 2,)
    symbols = sum(len(t or "") for t in TRAIN)
    assert info.rate == pytest.approx(4 * FRAMES / symbols)  # the fifth cut has no text
    assert f"chars: {info.sizes[0]} symbols, {info.rate:.2f} frames each" in out
    assert f"5 cuts {symbols:>12,} symbols  1 without text" in out
    assert not list(tokens.glob("*tmp*"))


def test_what_training_gets(tokens, capsys):
    run(capsys, tokens, "--type", "chars")
    conditions = ConditionSet.open(TokenDataset.open(tokens, "train"), ["text"])
    rows = np.array([4, 3])
    values, lengths, _ = conditions.read(Items.whole(rows, np.full(9, FRAMES)))["text"]
    assert lengths.tolist() == [6, 0] and values.shape == (2, 6, 1)
    assert TextFrontEnd.from_info(conditions.infos["text"]).decode(values[0]) == "Ab. cd"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_phonemes(tmp_path, capsys, monkeypatch, workers):
    monkeypatch.setattr(text_prepare, "_FEW", 2)
    texts = [*TRAIN, *(f"number {n}" for n in range(20))]
    make_texts(tmp_path, train=texts)
    run(capsys, tmp_path, "--type", "phonemes", "--language", "en-gb", "--workers", workers)
    assert decoded(tmp_path) == [speak(text or "", "en-gb") for text in texts]
    settings = load_info(tmp_path, "text", "").settings
    assert settings["language"] == "en-gb" and {"ˈ", ",", "<space>"} <= set(settings["symbols"])


def test_marks_of_phonemes_are_left_out_on_demand(tokens, capsys):
    run(capsys, tokens, "--type", "phonemes", "--no-stress", "--no-punctuation", "--workers", "1")
    assert decoded(tokens)[0] == strip_marks(speak(TRAIN[0]), False, False) == "həloʊ wɜːld"
    symbols = load_info(tokens, "text", "").settings["symbols"]
    assert not {"ˈ", "ˌ", ",", "!", "?", "."} & set(symbols)


def test_ready_phonemes(tmp_path, capsys, monkeypatch):
    ready = [{"text": "no", "custom": {"ipa": "nˈoʊ  jˈɛs"}}, {"text": "x", "custom": {"ipa": ""}}]
    make_texts(tmp_path, train=ready)
    with monkeypatch.context() as patch:
        patch.setattr(text_prepare.phonemes, "speak_all", None)  # espeak is not asked
        run(capsys, tmp_path, "--type", "phonemes", "--phonemes-field", "custom.ipa")
    assert decoded(tmp_path) == ["nˈoʊ jˈɛs", ""]
    settings = load_info(tmp_path, "text", "").settings
    # new texts become like these: stressed, without punctuation
    assert settings["stress"] and not settings["punctuation"] and settings["language"] == "en-us"
    front_end = TextFrontEnd.from_info(load_info(tmp_path, "text", ""))
    assert front_end.decode(front_end.encode("No. Yes!")) == "nˈoʊ jˈɛs"
    err = fail(capsys, tmp_path, "--type", "phonemes", "--field", "custom.ipa")
    assert "cut-0000 (text 'nˈoʊ  jˈɛs': these are phonemes" in err and "--phonemes-field" in err


@pytest.mark.parametrize("flags", [("chars",), ("bpe", "--vocab-size", "6"), ("phonemes",),
                                   ("phonemes", "--phonemes-field", "text")])  # fmt: skip
def test_one_bad_text_ends_nothing(tmp_path, capsys, flags):
    make_texts(tmp_path, train=["good", "a\ud83d", {"text": 5}, None, "good"])
    out = run(capsys, tmp_path, "--type", *flags)
    assert "1 without text  2 left out" in out
    assert "cut-0001 (text 'a\\ud83d': half a character (a lone surrogate); correct" in out
    assert skipped(tmp_path) == {
        "cut-0001": "text 'a\\ud83d': half a character (a lone surrogate); correct the text",
        "cut-0002": "text is '5', not text; name another field",
        "cut-0003": "no text",
    }
    assert [bool(text) for text in decoded(tmp_path)] == [True, False, False, False, True]
    if flags[0] != "bpe":
        err = fail(capsys, tmp_path, "--type", *flags, "--unknown", "error")
        assert "cut 'cut-0001': text 'a\\ud83d': half a character" in err
    make_texts(tmp_path, train=["good", "good"])
    run(capsys, tmp_path, "--type", *flags)
    assert not (tmp_path / "text_skipped_train.jsonl").exists()


def test_every_cut_in_its_language(tmp_path, capsys):
    cuts = [{"text": "Wagen", "custom": {"tag": "de"}}, {"text": "wagon", "custom": {"tag": "de"}},
            {"text": "wagon", "custom": {"tag": "en-gb"}}, {"text": "van"}]  # fmt: skip
    make_texts(tmp_path, train=cuts)
    flags = ("--type", "phonemes", "--language-field", "custom.tag", "--workers", "1")
    err = fail(capsys, tmp_path, *flags, "--unknown", "error")
    assert "cut 'cut-0003': no language in custom.tag; give --language" in err
    assert "no language in custom.tag" in run(capsys, tmp_path, *flags)
    run(capsys, tmp_path, *flags, "--language", "en-us")
    expected = [("Wagen", "de"), ("wagon", "de"), ("wagon", "en-gb"), ("van", "en-us")]
    assert decoded(tmp_path) == [speak(*pair) for pair in expected]
    assert load_info(tmp_path, "text", "").settings["language"] == "en-us"
    make_texts(tmp_path, train=cuts[:3])
    run(capsys, tmp_path, *flags)
    assert load_info(tmp_path, "text", "").settings["language"] == "de"  # of most cuts
    make_texts(tmp_path, train=["a", [cuts[0], cuts[2]]])
    run(capsys, tmp_path, *flags, "--language", "de")
    assert "custom.tag has de and en-gb" in skipped(tmp_path)["cut-0001"]


def test_the_language_of_the_manifest(tmp_path, capsys):
    def cut(text, language=None):
        return {"text": text, "language": language}

    train = [cut("Привет, мир", "Russian"), cut("мир", "ru_RU"), cut("Wagen", "deu"), cut("wagon")]
    make_texts(tmp_path, train=train, valid=[cut("мир", "rus")])
    flags = ("--type", "phonemes", "--workers", "1")
    out = run(capsys, tmp_path, *flags)
    spoken = [("Привет, мир", "ru"), ("мир", "ru"), ("Wagen", "de"), ("wagon", "en-us")]
    assert decoded(tmp_path) == [speak(*pair) for pair in spoken]
    assert decoded(tmp_path, "valid") == [speak("мир", "ru")]
    assert "cuts by language: ru 3, de 1, en-us 1" in out
    assert "no language named by 1 of them: en-us assumed, say another with --language" in out
    assert load_info(tmp_path, "text", "").settings["language"] == "ru"
    assert "up to date" in run(capsys, tmp_path, *flags)
    # --language is for all
    out = run(capsys, tmp_path, *flags, "--language", "en", "--splits", "train")
    assert [bool(text) for text in decoded(tmp_path)] == [False, False, True, True]
    assert decoded(tmp_path)[2] == speak("Wagen", "en-us")
    assert "2 left out" in out and "cuts by language: en-us 2" in out and "assumed" not in out


def test_a_script_that_is_not_the_language_s(tmp_path, capsys):
    make_texts(tmp_path, train=["Привет, мир", "снова"])
    err = fail(capsys, tmp_path, "--type", "phonemes")
    assert "none of its texts can be used; the first of 2: cut-0000 ('Привет' is written" in err
    assert "in Cyrillic letters" in err and "2 name no language: give --language" in err
    make_texts(tmp_path, train=["a “bad” word", "снова", "!!!", "hello *there*"])
    out = run(capsys, tmp_path, "--type", "phonemes")
    assert "2 left out" in out and "2 markdown removed, 2 quotes removed" in out
    reasons = skipped(tmp_path)
    assert set(reasons) == {"cut-0001", "cut-0002"}
    assert reasons["cut-0002"] == "no word in '!!!'"
    assert "'снова' is written in Cyrillic letters" in reasons["cut-0001"]
    err = fail(capsys, tmp_path, "--type", "phonemes", "--unknown", "error")
    assert "cuts_train.jsonl.gz: cut 'cut-0001': 'снова' is written" in err
    make_texts(tmp_path, train=[{"text": "купил iPhone и cлово", "language": "ru"}])
    out = run(capsys, tmp_path, "--type", "phonemes")
    assert "1 words in Latin letters spoken as English" in out
    assert "1 words with letters of another script put right" in out


@pytest.mark.parametrize("type", ["chars", "phonemes"])
def test_an_earlier_version_s_symbols_stay_as_they_are(tmp_path, capsys, type):
    """A training with them must go on, though texts are cleaned today."""
    make_texts(tmp_path, train=["a word"])
    flags = ("--type", type, *(("--language", "en-us") if type == "phonemes" else ()))
    run(capsys, tmp_path, *flags)
    info = json.loads((tmp_path / "text.json").read_text())
    prepared = json.loads((tmp_path / "text_prepared.json").read_text())
    assert info.pop("checksum") and prepared.pop("checksum")
    del info["settings"]["normalization"], prepared["splits"]["train"]["made_of"]["normalization"]
    prepared["text"] = digest(ConditionInfo.from_dict(info).to_dict())
    for name, values in (("text", info), ("text_prepared", prepared)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    out = run(capsys, tmp_path, *flags)
    assert "up to date (of an earlier version" in out and "remove text.json" in out
    assert json.loads((tmp_path / "text.json").read_text()) == info
    (tmp_path / "text.json").unlink()
    assert "up to date" not in run(capsys, tmp_path, *flags)
    assert load_info(tmp_path, "text", "").settings["normalization"] == 1


def test_bpe(tokens, capsys):
    run(capsys, tokens, "--type", "bpe", "--vocab-size", "45", "--lowercase")
    assert decoded(tokens) == [(text or "").lower() for text in TRAIN]
    assert decoded(tokens, "valid") == [text.lower() for text in VALID]
    table = SymbolTable.from_file(tokens / "tokens.txt")
    assert len(table) == 45 and table[1] == "<unk>"
    first = contents(tokens)
    (tokens / "text.json").unlink()
    run(capsys, tokens, "--type", "bpe", "--vocab-size", "45", "--lowercase")
    for name in ("text.json", "tokens.txt", "text_train.bin"):
        assert contents(tokens)[name] == first[name]
    assert "texts give no more than" in fail(capsys, tokens, "--type", "bpe")  # than 500


def test_unknown_pieces_are_counted(tmp_path, capsys):
    make_texts(tmp_path, train=["banana bandana"], valid=["bat 世", "ban"])
    out = run(capsys, tmp_path, "--type", "bpe", "--vocab-size", "12")
    assert "2 unknown symbols as <unk>" in out
    assert "as <unk>: 't' (U+0074) in the word 'bat' of cut 'cut-0001'; '世' (U+4E16)" in out
    assert skipped(tmp_path, "valid") == {"cut-0001": "symbols that the table lacks: 't', '世'"}


def test_fields(tmp_path, capsys):
    cuts = [{"text": "one", "custom": {"clean": "1"}}, [{"text": "b", "start": 1.0}, {"text": "a"}]]
    make_texts(tmp_path, train=cuts)
    run(capsys, tmp_path, "--type", "chars")
    assert decoded(tmp_path) == ["one", "a b"]  # in the order of time
    run(capsys, tmp_path, "--type", "chars", "--field", "custom.clean")
    assert decoded(tmp_path) == ["1", ""]
    err = fail(capsys, tmp_path, "--type", "chars", "--field", "custom.claen")
    assert "no cut has text in 'custom.claen'; fields with text in the first cut: text" in err
    assert "custom.clean" in err
    err = fail(capsys, tmp_path, "--type", "chars", "--field", "duration")
    assert "none of its texts can be used; the first of 2: cut-0000" in err
    assert "duration is '0.2', not text" in err


def test_fields_of_the_cut_itself(tmp_path, capsys):
    make_texts(tmp_path, train=["a"])
    edit(tmp_path, lambda cut: cut["custom"].update(words="b c"))
    run(capsys, tmp_path, "--type", "chars", "--field", "custom.words")
    assert decoded(tmp_path) == ["b c"]


def edit(directory, change, split="train") -> None:
    """Change the cuts of a split, and index it again."""
    path = directory / f"cuts_{split}.jsonl.gz"
    with gzip.open(path, "rt") as file:
        cuts = [json.loads(line) for line in file]
    for cut in cuts:
        change(cut)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    build_index(directory, split)


def test_no_text_at_all(tmp_path, capsys):
    make_texts(tmp_path, train=["a"], valid=[None, None])
    err = fail(capsys, tmp_path, "--type", "chars")
    assert "cuts_valid.jsonl.gz: no cut has text in 'text'" in err and "--splits" in err
    run(capsys, tmp_path, "--type", "chars", "--splits", "train")
    assert not (tmp_path / "text_valid.bin").exists()


def test_symbols_that_train_lacks(tmp_path, capsys):
    make_texts(tmp_path, train=["abc"], valid=["axbx", "c"], test=["öxc"])
    err = fail(capsys, tmp_path, "--type", "chars", "--unknown", "error")
    assert "'x' (U+0078) 2 times, first in the word 'axbx' of cut 'cut-0001' of valid" in err
    assert "'ö' (U+00F6) in the word 'öxc' of cut 'cut-0003' of test" in err
    assert "--unknown drop" in err
    out = run(capsys, tmp_path, "--type", "chars")
    assert decoded(tmp_path, "valid") == ["ab", "c"] and decoded(tmp_path, "test") == ["c"]
    assert out.count("2 unknown symbols left out") == 2
    assert "left out: 'x' (U+0078) 2 times, first in the word 'axbx' of cut 'cut-0001'" in out
    assert skipped(tmp_path, "test") == {"cut-0003": "symbols that the table lacks: 'ö', 'x'"}


def test_a_phoneme_that_train_lacks_is_named_by_its_word(tmp_path, capsys):
    make_texts(tmp_path, train=["Hello, world!"], valid=["oh my measure, world"])
    err = fail(capsys, tmp_path, "--type", "phonemes", "--unknown", "error")
    assert "'ʒ' (U+0292) in the word 'measure,' of cut 'cut-0001' of valid" in err


def test_the_same_again_has_nothing_to_do(tokens, capsys, monkeypatch):
    flags = ("--type", "chars")
    first = run(capsys, tokens, *flags)
    before = {p.name: p.stat().st_mtime_ns for p in tokens.iterdir()}
    monkeypatch.setattr(text_prepare, "transcripts", None)  # no text is read
    assert run(capsys, tokens, *flags) == first + "up to date\n"
    assert run(capsys, tokens, *flags, "--splits", "train").count(" symbols") == 2
    assert {p.name: p.stat().st_mtime_ns for p in tokens.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["text.json", "tokens.txt", "text_valid.bin", "text_prepared.json"]
)
@pytest.mark.parametrize("damage", ["", None])
def test_what_is_missing_or_damaged_is_made_again(tokens, capsys, name, damage):
    run(capsys, tokens, "--type", "chars")
    before = contents(tokens)
    if damage is None:
        (tokens / name).unlink()
    else:
        (tokens / name).write_text(damage)
    assert "up to date" not in run(capsys, tokens, "--type", "chars")
    assert contents(tokens) == before


def test_other_settings_and_other_data_make_all_anew(tokens, capsys):
    run(capsys, tokens, "--type", "chars")
    out = run(capsys, tokens, "--type", "chars", "--lowercase", "--splits", "train")
    assert "up to date" not in out and decoded(tokens)[4] == "ab. cd"
    assert not (tokens / "text_valid.bin").exists()  # was of the other table
    edit(tokens, lambda cut: cut["supervisions"].clear() if cut["id"] == "cut-0000" else None)
    out = run(capsys, tokens, "--type", "chars", "--lowercase", "--splits", "train")
    assert "up to date" not in out and "2 without text" in out and decoded(tokens)[0] == ""


def test_like_another_directory(tokens, tmp_path, capsys):
    run(capsys, tokens, "--type", "phonemes", "--no-stress", "--workers", "1")
    other = tmp_path / "other"
    make_texts(other, train=["a lazy world", "hello"])
    err = fail(capsys, other, "--like", str(tmp_path / "nowhere"))
    assert "nowhere/text.json not found" in err and "run rvqlm text" in err
    run(capsys, other, "--like", str(tokens))
    assert decoded(other) == [strip_marks(speak(t), False) for t in ("a lazy world", "hello")]
    assert (other / "text.json").read_text() == (tokens / "text.json").read_text()
    assert "up to date" in run(capsys, other, "--like", str(tokens))
    make_texts(other, train=["measure"])
    err = fail(capsys, other, "--like", str(tokens), "--unknown", "error")
    assert "'ɛ' (U+025B) in the word 'measure' of cut 'cut-0000' of train; correct" in err
    err = fail(capsys, other, "--like", str(tokens), "--lowercase", "--language", "de")
    assert "--language, --lowercase: --like settles that" in err


def test_a_split_more_with_the_directory_s_own_table(tokens, capsys):
    run(capsys, tokens, "--type", "chars", "--splits", "train")
    before = contents(tokens)
    err = fail(capsys, tokens, "--type", "chars", "--splits", "valid")
    assert "made from the split 'train', which is not among valid" in err and "--like" in err
    run(capsys, tokens, "--like", str(tokens), "--splits", "valid")
    assert decoded(tokens, "valid") == VALID
    after = contents(tokens)
    for name in ("text.json", "tokens.txt", "text_train.bin"):
        assert after[name] == before[name]
    assert "up to date" in run(capsys, tokens, "--type", "chars", "--splits", "train")


def test_dry_run(tokens, capsys):
    before = contents(tokens)
    out = run(capsys, tokens, "--type", "phonemes", "--dry-run")
    assert "nothing is written; these would be written" in out
    assert "cut-0000: h ə l ˈ o ʊ , <space> w" in out and "cut-0005: ɐ <space> d" in out
    assert "cut-0000: Hello, world!" in run(capsys, tokens, "--type", "bpe", "--dry-run")
    assert contents(tokens) == before
    run(capsys, tokens, "--type", "chars")
    assert "up to date" in run(capsys, tokens, "--type", "chars", "--dry-run")


def test_an_interruption_leaves_no_mixture(tokens, capsys, monkeypatch):
    run(capsys, tokens, "--type", "chars")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(text_prepare, "write_ragged", interrupted)
    assert main(["--manifest-dir", str(tokens), "--type", "chars", "--lowercase"]) == 130
    monkeypatch.undo()
    assert not (tokens / "text.json").exists() and not list(tokens.glob("text_*.bin"))
    capsys.readouterr()
    run(capsys, tokens, "--type", "chars", "--lowercase")
    assert decoded(tokens)[4] == "ab. cd"


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        ([], ["give one of --type and --like"]),
        (["--type", "chars", "--like", "x"], ["give one of --type and --like"]),
        (["--type", "chars", "--no-stress", "--language", "de", "--vocab-size", "9"],
         ["--language, --stress, --vocab-size: not for text of type chars"]),
        (["--type", "chars", "--workers", "2"], ["--workers: not for text of type chars"]),
        (["--type", "bpe", "--unknown", "error"], ["--unknown: not for text of type bpe"]),
        (["--type", "phonemes", "--lowercase"], ["--lowercase: not for text of type phonemes"]),
        (["--type", "phonemes", "--workers", "-1"], ["--workers -1 must be 0"]),
        (["--type", "phonemes", "--phonemes-field", "a", "--field", "b", "--workers", "2"],
         ["exclude each other", "need no espeak"]),
        (["--type", "bpe", "--vocab-size", "2"], ["--vocab-size 2 is too small"]),
        (["--type", "phonemes", "--language", "enoch"], ["no language 'enoch'; near it: en-"]),
        (["--type", "chars", "--splits", "train", "dev"], ["has no split 'dev' (there are train"]),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit(tokens, capsys, flags, messages):
    err = fail(capsys, tokens, *flags)
    for message in messages:
        assert message in err


def test_an_index_is_needed(tokens, capsys, tmp_path):
    (tokens / "index_valid.bin").unlink()
    err = fail(capsys, tokens, "--type", "chars")
    assert "index_valid.bin not found; run rvqlm index" in err
    (tmp_path / "empty").mkdir()
    assert "not a token directory" in fail(capsys, tmp_path / "empty", "--type", "chars")
