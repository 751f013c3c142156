"""Text front ends: known symbols, ways back, and rebuilding from what a checkpoint keeps."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.frontends import espeak, phonemes
from rvqlm.frontends.phonemes import PUNCTUATION, speak, speak_all, strip_marks, symbols
from rvqlm.frontends.pieces import load_pieces, train_pieces
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings

TEXTS = [
    "The old farmer carried a basket, and nobody was surprised.",
    "When Lucy escaped, Charles collected their apron; how odd!",
    "Why not? The soldier reported: it is raining... again.",
]


def chars(alphabet: str, **settings) -> TextFrontEnd:
    table = SymbolTable.of(["<space>" if c == " " else c for c in alphabet])
    return TextFrontEnd(TextSettings("chars", **settings), table)


def phoneme_front_end(texts=TEXTS, **settings) -> TextFrontEnd:
    how = TextSettings("phonemes", **settings)
    spoken = [speak(t, how.language) for t in texts]
    table = SymbolTable.of(sorted({s for text in spoken for s in how.of_phonemes(text)}))
    return TextFrontEnd(how, table)


def pieces_front_end(vocab_size: int = 60) -> TextFrontEnd:
    return TextFrontEnd.of_pieces(TextSettings("bpe"), train_pieces(iter(TEXTS * 3), vocab_size))


def rebuilt(front_end: TextFrontEnd) -> TextFrontEnd:
    """By way of JSON, as checkpoints and token directories keep it."""
    stored = json.loads(json.dumps(front_end.info(rate=5.5).to_dict()))
    info = ConditionInfo.from_dict(stored)
    assert info.rate == 5.5 and info.sizes == (len(front_end.table),)
    return TextFrontEnd.from_info(info)


def test_chars():
    front_end = chars(" 'abcé")
    ids = front_end.encode("  ab\t\n'e\u0301 c\u00a0a\x00")  # e and its accent, made one
    assert ids.dtype == np.int32 and ids.tolist() == [3, 4, 1, 2, 6, 1, 5, 1, 3]
    assert front_end.decode(ids) == "ab 'é c a"
    assert front_end.encode(" \n").tolist() == [] and front_end.decode([]) == ""
    assert front_end.decode([0, 3, 0, 4]) == "ab"


def test_chars_may_lose_their_case():
    with pytest.raises(UserError, match=r"text 'Bab': no symbol for 'B' \(U\+0042\)"):
        chars("ab").encode("Bab")
    assert chars("ab", lowercase=True).encode("Bab").tolist() == [2, 1, 2]
    assert rebuilt(chars("ab", lowercase=True)).encode("BA").tolist() == [2, 1]


def test_unknown_symbols_are_named_each_once():
    with pytest.raises(UserError) as error:
        chars(" ab").encode("aëbxë a")
    message = str(error.value)
    assert "'aëbxë a': no symbol for 'ë' (U+00EB) of the word 'aëbxë', 'x' (U+0078)" in message
    assert message.count("'ë'") == 1 and "among the 4" in message
    with pytest.raises(UserError, match=r"no symbol for '𝛛' \(U\+1D6DB\)"):
        chars("a").encode("a𝛛")
    with pytest.raises(UserError, match="symbol id 4: the table has 0 to 3"):
        chars(" ab").decode([1, 4])
    with pytest.raises(UserError, match="half a character"):
        chars("a").encode("a\ud83d")


@pytest.mark.parametrize(
    ("text", "language", "spoken"),
    [
        ("Hello, world!", "en-us", "həlˈoʊ, wˈɜːld!"),
        ("Hello (world)", "en-us", "həlˈoʊ wˈɜːld"),
        ("Wait... what?! No!!", "en-us", "wˈeɪt… wˌʌt?! nˈoʊ!"),
        ('"Yes," he said.', "en-us", "jˈɛs, hiː sˈɛd."),
        ("Wait — what", "en-us", "wˈeɪt— wˌʌt"),
        # points that are no pauses, and a last clause of one letter
        ("The U.S. army, a, 3.14, b", "en-us", None),
        ("Ça va? Très bien, merci.", "fr-fr", "sa vˈa? tʁɛ bjˈɛ̃, mɛʁsˈi."),
        ("Guten Tag, wie geht's?", "de", "ɡˈuːtən tˈɑːk, viː ɡˈeːts?"),
        ("¿Qué tal? ¡Muy bien!", "es", "kˈe tˈal? mˈuj βjˈen!"),
        ("你好，天气很好。", "cmn", "ni2χˈɑu2, thˈiɛ5n tɕhˈi5 χə2nχˈɑu2."),
        ("…!", "en-us", ""),
        ("", "en-us", ""),
    ],
)
def test_speak(text, language, spoken):
    if spoken is None:
        spoken = "ðə jˌuːˈɛs ˈɑːɹmi, ˈeɪ, θɹˈiː pɔɪnt wˈʌn fˈɔːɹ, bˈiː"
    assert speak(text, language) == spoken
    bare = "".join(c for c in spoken if c not in PUNCTUATION)
    assert strip_marks(speak(text, language), punctuation=False) == bare
    unstressed = spoken.replace("ˈ", "").replace("ˌ", "")
    assert strip_marks(speak(text, language), stress=False) == unstressed


def spoken_by_espeak(text, language):
    """What phonemizer gives: words apart by spaces, no punctuation, no marks of a language."""
    ipa = " ".join(ipa for _, ipa in espeak.clauses(text, language))
    return " ".join(re.sub(r"\([a-z-]+\)", "", ipa).split())


@pytest.mark.parametrize("text", [*TEXTS, "He said “no” - (really?) - and left; then: nothing"])
def test_without_punctuation_it_is_what_espeak_gives(text):
    for language in ("en-us", "en-gb", "de"):
        marked = speak(text, language)
        assert strip_marks(marked, punctuation=False) == spoken_by_espeak(text, language)


def test_symbols_of_phonemes():
    assert symbols("hˈoː ɔ̃n̩") == ["h", "ˈ", "o", "ː", "<space>", "ɔ̃", "n̩"]
    assert symbols("t͡ʃa, b") == ["t͡ʃ", "a", ",", "<space>", "b"]
    assert symbols("ç") == symbols("c\u0327") == ["ç"]
    assert symbols("\u0303a  b\n") == ["\u0303", "a", "<space>", "b"] and symbols(" ") == []


def test_phonemes():
    front_end = phoneme_front_end()
    for text in TEXTS:
        assert front_end.decode(front_end.encode(text)) == speak(text)
    ready = front_end.encode_phonemes("kˈæt, sˈæd")
    assert front_end.decode(ready) == "kˈæt, sˈæd"
    with pytest.raises(UserError, match=r"text 'Français\?': no symbol for 'ʁ' \(U\+0281\)"):
        front_end.encode("Français?", "fr-fr")
    with pytest.raises(UserError, match="'hˈæt': these are phonemes"):
        front_end.encode("hˈæt")
    with pytest.raises(UserError, match="no language 'frx'; near it: fr-be, fr-ch, fr-fr"):
        front_end.encode("Oui", "frx")
    with pytest.raises(UserError, match="no language '你'; there are: af, am"):
        front_end.encode("Oui", "你")


def test_settings_of_phonemes_change_them():
    texts = ["Hello, nobody."]
    plain = phoneme_front_end(texts, stress=False, punctuation=False)
    assert plain.decode(plain.encode(texts[0])) == "həloʊ noʊbɑːdi"
    assert plain.decode(plain.encode_phonemes("həlˈoʊ, noʊ")) == "həloʊ noʊ"
    british = phoneme_front_end(texts, language="en-gb")
    assert british.decode(british.encode(texts[0])) == speak(texts[0], "en-gb") != speak(texts[0])
    both = phoneme_front_end(texts * 2 + ["oʊ"])
    assert both.settings.language == "en-us"
    with pytest.raises(UserError, match="no symbol for 'ɒ'"):  # nˈəʊbɒdi
        both.encode(texts[0], "en-gb-x-rp")


def test_pieces():
    front_end = pieces_front_end()
    table = front_end.table
    assert len(table) == 60 and table[0] == "<eps>" and table[1] == "<unk>"
    assert any(len(s) > 2 for s in table.symbols if s.startswith("▁"))  # more than letters
    for text in TEXTS:
        ids = front_end.encode(text)
        assert ids.dtype == np.int32 and ids.min() > 1 and ids.max() < 60
        assert len(ids) < len(text) and front_end.decode(ids) == text
    assert front_end.decode([0, *front_end.encode("the"), 0]) == "the"
    assert front_end.encode("the 世").tolist()[-1] == 1
    assert front_end.encode("ﬁnd  it").tolist() == front_end.encode("find it").tolist()  # NFKC
    assert front_end.encode("").tolist() == []


def test_pieces_are_the_same_every_time():
    assert train_pieces(TEXTS * 3, 60) == train_pieces(iter(TEXTS * 3), 60)
    assert train_pieces(TEXTS, 60) != train_pieces(TEXTS[:2], 60)


def test_sizes_that_the_texts_cannot_give():
    with pytest.raises(UserError, match=r"--vocab-size 9: the texts have \d\d different char"):
        train_pieces(TEXTS, 9)
    with pytest.raises(UserError, match=r"--vocab-size 9000: .* no more than \d+ pieces") as error:
        train_pieces(TEXTS, 9000)
    most = int(str(error.value).split("no more than ")[1].split()[0])
    assert len(load_pieces(train_pieces(TEXTS, most))) == most
    with pytest.raises(UserError, match="no text"):
        train_pieces([], 60)


def test_errors_of_the_texts_come_through():
    def texts():
        yield TEXTS[0]
        raise UserError("line 2: damaged")

    with pytest.raises(UserError, match=r"^line 2: damaged$"):
        train_pieces(texts(), 60)


@pytest.mark.parametrize("make", [lambda: chars(" aehlnotw.,TW"), phoneme_front_end,
                                  lambda: phoneme_front_end(language="de"),
                                  lambda: phoneme_front_end(stress=False, punctuation=False),
                                  pieces_front_end])  # fmt: skip
def test_the_description_alone_rebuilds_it(make):
    front_end = make()
    again = rebuilt(front_end)
    assert again.settings == front_end.settings and again.table == front_end.table
    text = "what on a wet tale" if front_end.settings.type == "chars" else TEXTS[0]
    ids = front_end.encode(text)
    assert len(ids) > 5 and again.encode(text).tolist() == ids.tolist()
    assert again.decode(ids) == front_end.decode(ids)
    assert again.info(5.5).to_dict() == front_end.info(5.5).to_dict()


def test_settings_hold_only_what_the_type_has():
    all_types = {"type", "normalization", "symbols"}
    assert set(chars("ab").info(1).settings) == {*all_types, "lowercase"}
    names = {*all_types, "language", "stress", "punctuation"}
    assert set(phoneme_front_end().info(1).settings) == names
    assert set(pieces_front_end().info(1).settings) == {*all_types, "lowercase", "model"}


def test_descriptions_without_a_version_mean_what_they_meant():
    """Nothing was cleaned or written out, and no script was asked for."""
    new = phoneme_front_end(["$5 “a”!", "привет"])
    info = new.info(1.0)
    old = {k: v for k, v in info.settings.items() if k != "normalization"}
    front_end = TextFrontEnd.from_info(ConditionInfo("text", info.sizes, 1.0, old))
    assert front_end.info(1.0).settings == old
    assert front_end.decode(front_end.encode("привет")) == speak("привет", plain=False)
    with pytest.raises(UserError, match="'привет' is written in Cyrillic letters"):
        new.encode("привет")
    assert speak("$5") == "fˈaɪv dˈɑːlɚz" and speak("$5", plain=False) == "dˈɑːlɚ fˈaɪv"
    quoted = TextFrontEnd(TextSettings("chars", normalization=0), SymbolTable.of(["“", "a", "!"]))
    assert quoted.encode("“a").tolist() == [1, 2] and quoted.encode("!").tolist() == [3]
    assert chars("a!").encode("“a").tolist() == [1] and chars("a!").encode("!").tolist() == []
    with pytest.raises(UserError, match="normalization 2: this version knows 0 and 1"):
        TextSettings("chars", normalization=2)


@pytest.mark.parametrize("text", ["", '""', "!!!", " … ", "—", "«»", "\ufeff", "😀"])
def test_a_text_without_a_word_says_nothing(text):
    assert phoneme_front_end().encode(text).tolist() == []
    assert chars(' !"…—«»😀').encode(text).tolist() == []
    assert pieces_front_end().encode(text).tolist() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": None}, "KeyError 'type'"),
        ({"symbols": None}, "KeyError 'symbols'"),
        ({"lowercase": None}, "KeyError 'lowercase'"),
        ({"symbols": [1, 2]}, "incomplete description"),
        ({"symbols": ["<eps>", "a"]}, "text of 2 symbols"),
        ({"symbols": ["<eps>", "a", "a"]}, "two ids"),
        ({"type": "words"}, "'words': choose one of phonemes, chars, bpe"),
        ({"lowercase": "no"}, "lowercase: expected bool, got str"),
        ({"symbols": ["<eps>", 5]}, "expected str, got int"),
        ({"normalization": 7}, "this version knows 0 and 1"),
        ({"type": 5}, "choose one of"),
        ({"type": "bpe"}, "KeyError 'model'"),
        ({"type": "bpe", "model": "&"}, "incomplete"),
        ({"type": "bpe", "model": "AAAA"}, "sentencepiece model is damaged"),
    ],
)
def test_damaged_descriptions(change, message):
    info = chars("ab").info(1.0)
    settings = {k: v for k, v in {**info.settings, **change}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        TextFrontEnd.from_info(ConditionInfo("text", (3,), 1.0, settings))


def test_what_a_type_does_not_have_is_refused():
    with pytest.raises(UserError, match="language 'de': only phonemes have one"):
        chars("ab").encode("ab", "de")
    with pytest.raises(UserError, match="made of chars; give written text"):
        chars("ab").encode_phonemes("ab")
    with pytest.raises(UserError, match="gaps"):
        TextFrontEnd(TextSettings("chars"), SymbolTable({5: "a"}))


def test_many_texts_in_order_however_many_processes(monkeypatch):
    texts = [(f"Number {n}, {'yes' * (n % 3)}.", ("en-us", "de")[n % 2]) for n in range(60)]
    monkeypatch.setattr(phonemes, "_CHUNK", 8)
    expected = [speak(text, language) for text, language in texts]
    assert list(speak_all(texts, workers=0)) == expected
    assert list(speak_all(iter(texts), workers=2)) == expected
    monkeypatch.setattr(phonemes, "_CHUNKS", 5)  # processes are replaced
    assert list(speak_all(iter(texts), workers=1)) == expected


def test_speaking_takes_texts_only_a_little_ahead(monkeypatch):
    monkeypatch.setattr(phonemes, "_CHUNK", 8)
    taken = 0

    def texts():
        nonlocal taken
        while True:
            taken += 1
            yield "a", "en-us"

    for workers in (0, 2):
        taken, stream = 0, speak_all(texts(), workers)
        assert next(stream) == "ˈeɪ"
        stream.close()
        assert 0 < taken <= 8 * (4 * workers + 1)


def test_errors_of_other_processes_come_through():
    with pytest.raises(UserError, match="no language 'xx'"):
        list(speak_all([("a", "xx")], workers=2))


def test_processes_that_speak_import_no_torch():
    code = "import sys, rvqlm.bin.text, rvqlm.frontends.phonemes; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout == "False\n"


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        train_pieces(TEXTS, 60)
    chars("ab").encode("ab")  # the other types do without


def test_phonemes_in_a_text_are_said_as_they_are():
    table = SymbolTable.of(["<space>", *dict.fromkeys("həlˈoʊwɜːd,.!sæktɪmɹ")])
    front_end = TextFrontEnd(TextSettings("phonemes"), table)

    def said(text):
        return front_end.decode(front_end.encode(text, inline=True))

    assert said("Hello, /h ə l oʊ/!") == "həlˈoʊ, həloʊ!"
    assert said("(/tɪm/), hello /kæt./") == "tɪm, həlˈoʊ kæt."
    assert said("/h ə/ /l oʊ/") == "hə loʊ"
    # no phonemes: strokes within or between words
    with pytest.raises(UserError, match="of the word 'and/or'"):
        said("and/or")
    with pytest.raises(UserError, match=r"/h ʘ/: no symbol 'ʘ' \(U\+0298\) among the \d+ of"):
        said("hello /h ʘ/")
    plain = TextFrontEnd(TextSettings("phonemes", stress=False), table)
    assert plain.decode(plain.encode("/hˈə/", inline=True)) == "hə"
    # in preparation, and of characters, they are text
    chars = TextFrontEnd(TextSettings("chars"), SymbolTable.of(["/", "a", "<space>"]))
    assert chars.decode(chars.encode("a /a/", inline=True)) == "a /a/"
