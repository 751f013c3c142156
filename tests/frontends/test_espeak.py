"""The espeak wrapper: repeatable whatever came before."""

import sys

import pytest

from rvqlm.errors import UserError
from rvqlm.frontends import espeak
from rvqlm.frontends.phonemes import speak, strip_marks


def test_phonemes_of_known_words():
    assert speak("Hello, world!", "en-us") == "həlˈoʊ, wˈɜːld!"
    assert speak("Hello, world!", "en-gb") == "həlˈəʊ, wˈɜːld!"
    assert strip_marks(speak("hello world"), stress=False) == "həloʊ wɜːld"
    assert speak("") == ""


def test_phonemes_do_not_depend_on_order():
    # a closing quotation mark changes the stress of "when" in the next call, unless prevented
    before = ['The soldier reported, "it is raining."', "And then?", "I have (until now"]
    text = "When Lucy escaped, Charles collected their apron."
    alone = speak(text, "en-gb-x-rp")
    for other in before:
        speak(other, "en-gb-x-rp")
        assert speak(text, "en-gb-x-rp") == alone


def test_voices():
    voices = espeak.voices()
    assert {"en-us", "en-gb", "en-gb-scotland", "en-029"} <= set(voices) and len(voices) > 100
    assert espeak.voice_of("EN-GB-Scotland") == voices["en-gb-scotland"] == "gmw/en-GB-scotland"
    with pytest.raises(UserError, match=r"no language 'en-atlantis'; near it: en-029.*en-us"):
        espeak.voice_of("en-atlantis")


def test_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match="pip install espeakng-loader"):
        espeak._loader()


def test_a_last_clause_of_one_character_is_spoken():
    assert len(speak("a, b").split()) == 2


def test_signs_that_are_no_ipa():
    assert speak("façade", "en-gb-scotland") == "fəsˈaːd"  # a colon was length, and no pause
    assert speak("jumps", "is") == "jˈymfs" and speak("kura", "mi") == "kˈura"
    assert speak("d'accord", "da") == "dˈʔɑksʔoɐ̯"
    assert speak("jumps", "is", plain=False) == "jˈym#fs"
    assert speak("say: what?", "en-gb-scotland").endswith("?") and ":" in speak("say: what?")
