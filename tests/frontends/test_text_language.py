"""Languages as manifests write them, and texts in letters that these are not read from."""

import pytest

from rvqlm.errors import UserError
from rvqlm.frontends import espeak
from rvqlm.frontends.phonemes import speak
from rvqlm.frontends.text_language import (
    _SAME,
    _SCRIPTS,
    mend_letters,
    require_script,
    script_of,
    scripts_of,
    tag_of,
)


@pytest.mark.parametrize(
    ("tag", "written"),
    [
        ("ru", "ru RU ru-RU ru_RU rus Russian russian ru_RU.UTF-8"),
        ("en-us", "en-us en_US en EN English eng en-CA"),
        ("en-gb", "en-GB en_gb British en-AU"),
        ("fr-fr", "fr fr-FR fra fre French fr-CA"),
        ("de", "de German deu ger de-AT de_DE"),
        ("cmn", "zh zh-CN cmn Chinese Mandarin zho"),
        ("es-419", "es-419 es-MX"),
        ("pt-br", "pt-BR pt_br"),
        ("nb", "no nb Norwegian nn-NO"),
        ("ja", "ja ja-JP Japanese jpn"),
        ("en-gb-scotland", "EN-GB-Scotland en_GB_scotland"),
    ],
)
def test_however_a_language_is_written(tag, written):
    assert {tag_of(each) for each in written.split()} == {tag}


def test_every_voice_goes_by_its_own_tag_and_speaks():
    tags = {tag.lower() for tag in espeak.voices()}
    assert {tag_of(tag) for tag in espeak.voices()} == set(espeak.voices())
    assert set(_SAME.values()) <= tags
    assert all(tag in tags or tag == "chr" for tag in _SCRIPTS)
    assert not {"fo", "kaa", "xex"} & tags  # without a dictionary


@pytest.mark.parametrize("language", ["", "Enochian", "x-klingon", "12", "ru ru"])
def test_languages_that_espeak_does_not_have(language):
    with pytest.raises(UserError, match="espeak has no language"):
        tag_of(language)


@pytest.mark.parametrize(
    ("tag", "text", "message"),
    [
        ("en-us", "Привет, мир", "'Привет' is written in Cyrillic letters, and .* Latin ones"),
        ("en-us", "say привет now", "'привет' is written in Cyrillic"),
        ("ru", "Good morning", "'Good' is written in Latin letters, and .* read from Cyrillic"),
        ("ru", "слово λόγος", "'λόγος' is written in Greek letters"),
        ("ja", "今日は", "Chinese letters, .* Hiragana or Katakana ones; write it in kana"),
        ("en-us", "你好", "'你好' is written in Chinese letters"),
        ("el", "שלום", "Hebrew letters, and the language el is read from Greek ones"),
    ],
)
def test_other_scripts_are_refused(tag, text, message):
    with pytest.raises(UserError, match=message):
        require_script(text, tag)


@pytest.mark.parametrize(
    ("tag", "text", "foreign"),
    [
        ("en-us", "café naïve 5 €", 0),
        ("ru", "купил iPhone в Google Store", 3),
        ("ru", "112", 0),
        ("uk", "п'ять µ ª", 0),
        ("sr", "Здраво svete", 0),
        ("ja", "カメラー です", 0),
        ("en-us", "π = α", 0),
        ("cmn", "你好 ok", 1),
    ],
)
def test_texts_that_are_read(tag, text, foreign):
    assert require_script(text, tag) == foreign


def test_scripts():
    assert [script_of(c) for c in "aяαァあ今가µ5'"] == [
        "LATIN", "CYRILLIC", "GREEK", "KATAKANA", "HIRAGANA", "CJK", "HANGUL", None, None, None
    ]  # fmt: skip
    assert scripts_of("ru-lv") == {"CYRILLIC"} and scripts_of("en-gb") == {"LATIN"}


@pytest.mark.parametrize(
    ("text", "mended"),
    [("cлово", ("слово", 1)), ("сompany", ("company", 1)), ("Хopoшо, Xонда", ("Хорошо, Хонда", 2)),
     ("VIP-клиент", ("VIP-клиент", 0)), ("слово word", ("слово word", 0)), ("aя", ("ая", 1)),
     ("zя", ("zя", 0))],
)  # fmt: skip
def test_letters_that_look_like_others(text, mended):
    assert mend_letters(text) == mended


def test_a_russian_text_is_spoken_as_such():
    assert speak("Съешь ещё этих мягких булок.", "ru") == "sjjˈeʃ jɪɕˈɵ ˈɛtʲix mʲˈɑxkʲix bˈuɭʌk."
