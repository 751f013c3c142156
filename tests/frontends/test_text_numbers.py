"""What espeak misreads is written out; what it reads right is not touched."""

import random
import sys

import pytest

from rvqlm.errors import UserError
from rvqlm.frontends.phonemes import speak
from rvqlm.frontends.text import TextSettings
from rvqlm.frontends.text_numbers import written_out

EXPECTED = {
    "en-us": {
        "in 1984, 1812 and 1500": "in nineteen eighty-four, eighteen twelve and fifteen hundred",
        "the 1990s and '80s": "the nineteen nineties and eighties",
        "$5, $1, $5.50, €20 and £1,000.05": "5 dollars, 1 dollar, 5 dollars and 50 cents, 20 euros "
        "and 1,000 pounds and 5 pence",
        "$1.5 million": "1.5 million dollars",
        "9:00 am, at 9:00, 10:05": "9 am, at 9 o'clock, 10 oh 5",
        "pages 5–6, 3-1": "pages 5 to 6, 3 1",
        "Henry VIII, chapter IV, World War II": "Henry the eighth, chapter 4, World War 2",
        "Dr. Smith and Mrs. Brown, No. 5 St. James vs. him": "Dr Smith and Mrs Brown, number 5 "
        "St James versus him",
        "5 kg, 1 km": "5 kilograms, 1 kilometer",
        "the 100th and 21st": "the one hundredth and twenty-first",
        "1/2, 2 1/2, 2½ and 3/4": "one half, 2 and one half, 2 and one half and three quarters",
    },
    "de": {
        "im Jahr 1984, die 1990er": "im Jahr neunzehnhundertvierundachtzig, die "
        "neunzehnhundertneunziger",
        "1. Mai, der 3. Oktober, am 21. Januar": "erster Mai, der dritte Oktober, am "
        "einundzwanzigsten Januar",
        "5,50 €, $5, 1.000 €": "5 Euro 50, 5 Dollar, 1.000 Euro",
        "12:30 Uhr, 14:00 Uhr, 14:05": "12 Uhr 30, 14 Uhr, 14 Uhr 5",
        "Heinrich VIII. im II. Weltkrieg, Kapitel IV": "Heinrich der Achte im zweiten Weltkrieg, "
        "Kapitel 4",
        "Dr. Müller, z. B. Nr. 5, d.h. 5-6 kg": "Doktor Müller, zum Beispiel Nummer 5, das heißt "
        "5 bis 6 Kilogramm",
        "Hauptstr. 5 usw.": "Hauptstraße 5 und so weiter.",
    },
    "fr-fr": {
        "1re, 2e, XXe siècle, Louis XIV": "première, deuxième, vingtième siècle, Louis 14",
        "5,50 €, 1 000 €, $5": "5 euros 50, 1000 euros, 5 dollars",
        "12h30, 12:00": "12 heures 30, 12 heures",
        "M. Dupont, n° 5, -5, 1/3": "monsieur Dupont, numéro 5, moins 5, un tiers",
    },
    "es": {
        "3.º, 1er, siglo XX": "3º, primer, siglo XX",
        "5,50 €, 1 €, 1 000 000, -5": "5 euros con 50 céntimos, 1 euro, 1000000, menos 5",
        "Sr. García, EE. UU., n.º 5, 10 km": "Sr García, Estados Unidos, número 5, 10 kilómetros",
    },
    "ru": {
        "3,14 и 1,5 часа": "три целых четырнадцать сотых и одна целая пять десятых часа",
        "1-й, 2-я, 90-е, 3-го": "первый, вторая, девяностые, третьего",
        "5%, 21%, 2 кг, 2 коп., 5 тыс. руб.": "5 процентов, 21 процент, 2 килограмма, две копейки, "
        "5 тысяч рублей.",
        "$5, 100 ₽, 1 000 000": "5 долларов, 100 рублей, 1000000",
        "-5 °C": "минус 5 градусов Цельсия",
        "Николай II в XX веке, глава IV": "Николай второй в двадцатом веке, глава 4",
        "т. е. в г. Москва и т.д.": "то есть в город Москва и так далее.",
        "8 800 555 35 35": "8 800 555 35 35",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "text", "said"),
    [(tag, text, said) for tag, texts in EXPECTED.items() for text, said in texts.items()],
)
def test_what_is_written_out(tag, text, said):
    assert written_out(text, tag) == said


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("en-us", "I am V. He said no. U.S. army, 2007, 1,984, 28.8, version 1.2.3, 24/7, 12:30."),
        ("de", "Er war 5. Dann kam 2024. 1.234,56 und 5 Prozent."),
        ("fr-fr", "En 1984, 80 % et 1er, 3,14."),
        ("es", "En 1984, 80 % y 1º, 2ª, 3,14; siglo XXI."),
        ("ru", "Он пришёл в 5 часов и 12:05. Глава."),
        ("it", "5 €, 1/2, XX, -5, 1984, Dr. Rossi"),
    ],
)
def test_what_espeak_reads_right_is_left_to_it(tag, text):
    assert written_out(text, tag) == text


def test_numbers_without_a_word_stay():
    many = "9" * 400
    assert written_out(f"{many}-й век", "ru") == f"{many}-й век"


def test_any_text_at_all():
    """Whatever is written, it gives a text or one line about it."""
    rng = random.Random(0)
    parts = [
        *"0123456789.,-–:/ %$€₽°½IVX&№'\"*_`+ аяАazA",
        "\u0301",
        "\u200d",
        "\n",
        "٣",
        "²",
        "漢",
    ]
    parts += ["век", "руб.", "kg", "th", "-й", "er", "h", "Uhr", "M.", "z. B.", "т.д.", "1 000"]
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randint(1, 30)))
        for tag in ("en-us", "de", "fr-fr", "es", "ru"):
            try:
                words = TextSettings("phonemes", language=tag).words(text)
            except UserError as e:
                assert "\n" not in str(e)
            else:
                assert "\n" not in written_out(words, tag)


def test_as_spoken():
    assert speak("$5", "en-us") == speak("five dollars", "en-us")
    assert speak("XX век", "ru") == speak("двадцатый век", "ru")
    assert "en" not in speak("2e", "fr-fr") and speak("2e", "fr-fr") == speak("deuxième", "fr-fr")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert written_out("5 kg", "en-us") == "5 kilograms"
    with pytest.raises(UserError, match="pip install num2words"):
        written_out("in 1984", "en-us")
