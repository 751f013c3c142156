"""Numbers and abbreviations that espeak misreads, in words, before it speaks: English, German,
French, Spanish and Russian (num2words knows the numerals). What espeak reads right is left to it.

==================== ============================ =============================================
what                 espeak 1.52                  written out
==================== ============================ =============================================
amounts of money     "dollar five" (all five)     five dollars; en 5 dollars and 50 cents
units, as 5 kg       letters; ru 5% in singular   5 kilograms, 5 процентов; what espeak spells
years, decades       en, de: thousand nine ...    nineteen eighty-four, nineteen nineties
ordinals             de, fr 2e, ru 5-й, es 3.º    zweiter Mai, deuxième, пятый, tercero; en 100th
Roman numerals       en "roman eight", de, fr;    Henry the eighth, chapter four, Heinrich der
                     ru "ai ai"                   Achte, quatorze, Николай второй, двадцатый век
decimals             ru "три и один"              три целых четырнадцать сотых
1 000 000            ru, es: one, zero zero       миллион
-5                   ru, fr, es without its sign  минус 5
5-6                  en "dash", de "Strich"       five to six, fünf bis sechs
1/2, ½               "slash", or in English       one half, un tiers, три четверти
12:00, 12h30         zero zero; de "Uhr" twice    12 o'clock, 12 Uhr 30, 12 heures 30
abbreviations        letters, or a pause at the   Doctor, Monsieur, zum Beispiel, то есть
                     point
==================== ============================ =============================================

Not known: the case of a numeral in Russian and German beyond its written ending, dates of digits
alone, telephone numbers, which are read as numbers.
"""

from __future__ import annotations

import re
from functools import lru_cache

from rvqlm.frontends.text_rules import ROMAN, Language, Rule, numeral, roman_value

_SUSPECT = re.compile(r"[\d½⅓⅔¼¾&°.]|\b[IVX]{2}|[IVX]e|\b[IV]\b|vs|usw|bzw|EEUU|St|[гд]-")
_NUMBER = re.compile(r"[\d½⅓⅔¼¾]")


def written_out(text: str, tag: str) -> str:
    """`text` with what espeak would misread in words; unchanged in languages other than the five.

    tag: espeak's of the language. Raises `UserError` where num2words is wanted and not installed.

    >>> written_out("Henry VIII paid $5.50 in 1541.", "en-us")
    'Henry the eighth paid 5 dollars and 50 cents in fifteen forty-one.'
    """
    if not _SUSPECT.search(text):
        return text
    number = _NUMBER.search(text)
    for pattern, said, of_numbers in _rules(tag.partition("-")[0].lower()):
        if number or not of_numbers:
            text = pattern.sub(said, text)
    return " ".join(text.split())


# ------------------------------------------------------------------------------------- English


def _decade(found: re.Match) -> str:
    number = int(found[1])
    said = numeral(number, "en", "year" if number > 99 else "cardinal")
    return said[:-1] + "ies" if said.endswith("y") else said + "s"


_MONARCHS = (
    "Henry|George|Edward|Charles|James|William|Louis|Philip|Richard|Napoleon|Pius|Paul|Elizabeth"
    "|Frederick|Alexander|Nicholas|Peter|Catherine|Ferdinand|Leopold|Gregory|Innocent|Clement"
    "|Benedict|Leo|Francis|John|Mary|Wilhelm|Otto|Ramses|Ptolemy"
)
_EN = Language(
    "en",
    ("one half", "one third", "two thirds", "one quarter", "three quarters"),
    " and ",
    " to ",
    {
        "$": ("dollar|dollars", "cent|cents"),
        "€": ("euro|euros", "cent|cents"),
        "£": ("pound|pounds", "penny|pence"),
        "¥": ("yen", ""),
    },
    {
        "kg": "kilogram|kilograms",
        "km": "kilometer|kilometers",
        "cm": "centimeter|centimeters",
        "mm": "millimeter|millimeters",
        "ft": "foot|feet",
        "mph": "mile an hour|miles an hour",
        "GB": "gigabyte|gigabytes",
        "MB": "megabyte|megabytes",
    },
    {
        r"(?:No|no)\. ?(?=\d)": "number ",
        r"(Mr|Mrs|Ms|Dr|St)\.": r"\1",
        r"Prof\.": "Professor",
        r"Capt\.": "Captain",
        r"Gen\.(?= [A-Z])": "General",
        r"Col\.(?= [A-Z])": "Colonel",
        r"Lt\.": "Lieutenant",
        r"Sgt\.": "Sergeant",
        r"Rev\.": "Reverend",
        r"Gov\.": "Governor",
        r"Sen\.(?= [A-Z])": "Senator",
        r"Mt\.": "Mount",
        r"Jr": "Junior",
        r"vs": "versus",
        r"approx\.": "approximately",
        r"Ave\.": "Avenue",
    },
    (
        (r"(\d{1,2}):00(?= ?[ap]\.?m\b)", r"\1"),
        (r"(?<![\d:])(\d{1,2}):00(?![\d:])", r"\1 o'clock"),
        (r"(?<![\d:])(\d{1,2}):0([1-9])(?![\d:])", r"\1 oh \2"),
        (r"(?<![\d,.])(\d{1,4})(?:st|nd|rd|th)\b", lambda m: numeral(int(m[1]), "en", "ordinal")),
        (r"'?(?<![\d,.])(\d{2,3}0|[2-9]0)s\b", _decade),
        (rf"\b({_MONARCHS}) ({ROMAN})\b(?!\.\w)",
         lambda m: f"{m[1]} the {numeral(roman_value(m[2]), 'en', 'ordinal')}"
         if len(m[2]) > 1 else m[0]),
        (rf"\b(?=[IVX]{{2}})({ROMAN})\b", lambda m: str(roman_value(m[1]))),
    ),
    comma=False,
    cents=" and ",
)  # fmt: skip

# -------------------------------------------------------------------------------------- German

_MONTHS = "Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
_TO_N = "am|dem|den|des|vom|zum|beim|im|seit|bis|ab|einem|einer|vor|nach"


def _german(number: int, before: str | None) -> str:
    """An ordinal with the ending that the word before it asks for."""
    before = (before or "").strip().lower()
    ending = "n" if before in _TO_N.split("|") else "" if before in ("der", "die", "das") else "r"
    return numeral(number, "de", "ordinal") + ending


def _german_name(found: re.Match) -> str:
    if found[1] in ("Kapitel", "Teil", "Band", "Akt", "Abschnitt", "Artikel", "Nummer", "Buch"):
        return f"{found[1]} {roman_value(found[2])}."
    return f"{found[1]} der {numeral(roman_value(found[2]), 'de', 'ordinal').capitalize()}"


_DE = Language(
    "de",
    ("ein halb", "ein Drittel", "zwei Drittel", "ein Viertel", "drei Viertel"),
    " ",
    " bis ",
    {
        "$": ("Dollar", ""),
        "€": ("Euro", ""),
        "£": ("Pfund", ""),
        "¥": ("Yen", ""),
    },
    {
        "kg": "Kilogramm",
        "km/h": "Kilometer pro Stunde",
        "km": "Kilometer",
        "cm": "Zentimeter",
        "mm": "Millimeter",
        "m²": "Quadratmeter",
        "GB": "Gigabyte",
        "MB": "Megabyte",
    },
    {
        r"Dr\.": "Doktor",
        r"Prof\.": "Professor",
        r"Hr\.": "Herr",
        r"Fr\.(?= [A-ZÄÖÜ])": "Frau",
        r"St\.(?= [A-ZÄÖÜ])": "Sankt",
        r"z\. ?B\.": "zum Beispiel",
        r"d\. ?h\.": "das heißt",
        r"u\. ?a\.": "unter anderem",
        r"usw": "und so weiter",
        r"bzw": "beziehungsweise",
        r"ca\.": "circa",
        r"Nr\.": "Nummer",
        r"Mio\.": "Millionen",
        r"Mrd\.": "Milliarden",
        r"ggf": "gegebenenfalls",
        r"evtl": "eventuell",
        r"inkl\.": "inklusive",
        r"Jh\.": "Jahrhundert",
    },
    (
        (r"(?<=[a-zäöü])str\. ?(?=\d)", "straße "),
        (r"(?<![\d:])(\d{1,2}):00(?![\d:])(?: ?Uhr\b)?", r"\1 Uhr"),
        (r"(?<![\d:])(\d{1,2}):0?(\d{1,2})(?![\d:])(?: ?Uhr\b)?", r"\1 Uhr \2"),
        (rf"(\b\w+ )?(?<![\d.,])(\d{{1,2}})\. (?=(?:{_MONTHS}|Jahrhundert|Kapitel|Weltkrieg)\b)",
         lambda m: f"{m[1] or ''}{_german(int(m[2]), m[1])} "),
        (r"\b(1[1-9]\d0|[2-9]0)er\b",
         lambda m: numeral(int(m[1]), "de", "year" if len(m[1]) > 2 else "cardinal") + "er"),
        (rf"\b([A-ZÄÖÜ][a-zäöüß]+) (?=[IVX]{{2}}|[IVX]\.(?! [A-ZÄÖÜ]))({ROMAN})\.", _german_name),
        (rf"(\b\w+ )?\b({ROMAN})\. (?=[A-ZÄÖÜ])",
         lambda m: f"{m[1] or ''}{_german(roman_value(m[2]), m[1])} "),
        (rf"\b(?=[IVX]{{2}})({ROMAN})\b", lambda m: str(roman_value(m[1]))),
    ),
)  # fmt: skip

# -------------------------------------------------------------------------------------- French

_FR = Language(
    "fr",
    ("un demi", "un tiers", "deux tiers", "un quart", "trois quarts"),
    " et ",
    " à ",
    {
        "$": ("dollar|dollars", ""),
        "€": ("euro|euros", ""),
        "£": ("livre|livres", ""),
        "¥": ("yen|yens", ""),
    },
    {"km/h": "kilomètre à l'heure|kilomètres à l'heure", "m²": "mètre carré|mètres carrés"},
    {
        r"M\.(?= [A-ZÀ-Ý])": "monsieur",
        r"(Mme|Mlle|Dr|Me)\.": r"\1",
        r"St\.?(?=[ -][A-ZÀ-Ý])": "saint",
        r"Ste\.?(?=[ -][A-ZÀ-Ý])": "sainte",
        r"n° ?(?=\d)": "numéro ",
    },
    (
        (r"№ ?(?=\d)", "numéro "),
        (r"(?<![\d:])(\d{1,2}):00(?![\d:])", r"\1 heures"),
        (r"(?<![\d,.])(\d{1,2}) ?h ?(\d\d)\b", r"\1 heures \2"),
        (r"(?<![\d,.])(\d{1,2}) ?h\b", r"\1 heures"),
        (r"\b(?:1|I)r?[eè]re\b|\b(?:1|I)re\b", "première"),
        (r"\b2(nde?)\b", lambda m: "seconde" if m[1] == "nde" else "second"),
        (
            r"(?<![\d,.])(\d+)(?:e|è|ème|eme|ième)s?\b",
            lambda m: numeral(int(m[1]), "fr", "ordinal"),
        ),
        (r"\bIer\b", "premier"),
        (rf"\b({ROMAN})(?:e|è|ème|eme)\b", lambda m: numeral(roman_value(m[1]), "fr", "ordinal")),
        (rf"\b(?=[IVX]{{2}})({ROMAN})\b", lambda m: str(roman_value(m[1]))),
        (r"(?<![\w)])[-−](?=\d)|(?<=\d)−(?=\d)", " moins "),
    ),
)

# ------------------------------------------------------------------------------------- Spanish

_ES = Language(
    "es",
    ("un medio", "un tercio", "dos tercios", "un cuarto", "tres cuartos"),
    " y ",
    " a ",
    {
        "$": ("dólar|dólares", "centavo|centavos"),
        "€": ("euro|euros", "céntimo|céntimos"),
        "£": ("libra|libras", "penique|peniques"),
        "¥": ("yen|yenes", ""),
    },
    {
        "km/h": "kilómetro por hora|kilómetros por hora",
        "kg": "kilogramo|kilogramos",
        "km": "kilómetro|kilómetros",
        "cm": "centímetro|centímetros",
        "mm": "milímetro|milímetros",
        "m²": "metro cuadrado|metros cuadrados",
        "m": "metro|metros",
    },
    {
        r"(Sr|Sra|Srta|Dr|Dra|Ud|Uds)\.": r"\1",
        r"D\.(?= [A-ZÁÉÍÓÚ])": "don",
        r"D(?:ñ|\.ª)a?\.(?= [A-ZÁÉÍÓÚ])": "doña",
        r"EE\. ?UU\.?": "Estados Unidos",
        r"EEUU": "Estados Unidos",
        r"p\. ?ej\.": "por ejemplo",
        r"pág\.": "página",
        r"(?:núm\.|n\.?º) ?(?=\d)": "número ",
    },
    (
        (r"(?<![\d:])(\d{1,2}):00(?![\d:])(?: ?h(?:oras)?\b)?", r"\1 en punto"),
        (r"(\d:\d\d) ?h\b", r"\1 horas"),
        (r"(\d)\.([ºª])", r"\1\2"),
        (r"\b(1|3)\.?er\b", lambda m: "primer" if m[1] == "1" else "tercer"),
        (r"(?<![\w)])[-−](?=\d)|(?<=\d)−(?=\d)", " menos "),
        (r"(?<=\d) ?[×x] ?(?=\d)", " por "),
        (r"&", " y "),
    ),
    cents=" con ",
)

# ------------------------------------------------------------------------------------- Russian

_ENDINGS: dict[str, dict] = {
    ending: how
    for endings, how in (
        ("й ый ой ий", {}),
        ("я ая ья", {"gender": "f"}),
        ("е ое ье", {"gender": "n"}),
        ("го ого", {"case": "g"}),
        ("му ому", {"case": "d"}),
        ("м ом", {"case": "p"}),
        ("ым им", {"case": "i"}),
        ("ю ую", {"case": "a", "gender": "f"}),
        ("х ых их", {"case": "g", "plural": True}),
        ("ми ыми", {"case": "i", "plural": True}),
    )
    for ending in endings.split()
}
_CENTURY = {"век": "n", "в": "n", "века": "g", "веку": "d", "веком": "i", "веке": "p"}


def _russian(found: re.Match) -> str:
    """5-й, 90-е, 3-го."""
    number, ending = int(found[1]), found[2]
    if ending == "ти":
        return numeral(number, "ru", case="g")
    how = _ENDINGS[ending]
    if ending == "е" and number % 10 == 0 and number > 10:  # 90-е годы
        how = {"plural": True}
    return numeral(number, "ru", "ordinal", **how)


def _russian_name(found: re.Match) -> str:
    heads = ("Глава", "Том", "Часть", "Раздел", "Акт", "Книга", "Серия", "Сцена", "Песнь", "Тип")
    number = roman_value(found[2])
    ordinal = found[1] not in heads
    return f"{found[1]} {numeral(number, 'ru', 'ordinal' if ordinal else 'cardinal')}"


_RU = Language(
    "ru",
    ("одна вторая", "одна треть", "две трети", "одна четверть", "три четверти"),
    " и ",
    "",
    {
        "$": ("доллар|доллара|долларов", "цент|цента|центов"),
        "€": ("евро|евро|евро", "цент|цента|центов"),
        "£": ("фунт|фунта|фунтов", "пенс|пенса|пенсов"),
        "¥": ("иена|иены|иен", ""),
        "₽": ("рубль|рубля|рублей", "копейка|копейки|копеек"),
    },
    {
        "руб.": "рубль|рубля|рублей",
        "руб": "рубль|рубля|рублей",
        "коп.": "копейка|копейки|копеек",
        "коп": "копейка|копейки|копеек",
        "тыс.": "тысяча|тысячи|тысяч",
        "тыс": "тысяча|тысячи|тысяч",
        "млн": "миллион|миллиона|миллионов",
        "млрд": "миллиард|миллиарда|миллиардов",
        "кг": "килограмм|килограмма|килограммов",
        "км/ч": "километр в час|километра в час|километров в час",
        "км": "километр|километра|километров",
        "см": "сантиметр|сантиметра|сантиметров",
        "мм": "миллиметр|миллиметра|миллиметров",
        "м": "метр|метра|метров",
        "л": "литр|литра|литров",
        "%": "процент|процента|процентов",
        "°C": "градус Цельсия|градуса Цельсия|градусов Цельсия",
        "°С": "градус Цельсия|градуса Цельсия|градусов Цельсия",
        "°": "градус|градуса|градусов",
    },
    {
        r"[Тт]\. ?е\.": "то есть",
        r"т\. ?д": "так далее",
        r"т\. ?п": "тому подобное",
        r"(?<=и )др": "другие",
        r"(тыс\.|тыс|млн|млрд) ?руб": r"\1 рублей",
        r"до н\. ?э\.": "до нашей эры",
        r"н\. ?э\.": "нашей эры",
        r"гг\.": "годов",
        r"(?<=\d )г\.": "года",
        r"г\.(?= [А-ЯЁ])": "город",
        r"ул\.(?= [А-ЯЁ])": "улица",
        r"им\.(?= [А-ЯЁ])": "имени",
        r"проф\.": "профессор",
        r"стр\. ?(?=\d)": "страница ",
        r"рис\. ?(?=\d)": "рисунок ",
        r"д\. ?(?=\d)": "дом ",
        r"кв\. ?(?=\d)": "квартира ",
        r"д-р": "доктор",
        r"г-н": "господин",
        r"г-жа": "госпожа",
    },
    (
        (rf"(?<![\d,.])(\d+)-({'|'.join(sorted(_ENDINGS, key=len, reverse=True))}|ти)\b", _russian),
        (rf"\b({ROMAN}) (век|века|веке|веком|веку|в(?=\.))\b\.?",
         lambda m: numeral(roman_value(m[1]), "ru", "ordinal", case=_CENTURY[m[2]])
         + " " + ("век" if m[2] == "в" else m[2])),
        (rf"\b([А-ЯЁ][а-яё]+) ({ROMAN})\b", _russian_name),
        (rf"\b(?=[IVX]{{2}})({ROMAN})\b", lambda m: str(roman_value(m[1]))),
        (r"(?<![\w)])[-−](?=\d)|(?<=\d)−(?=\d)", " минус "),
        (r"(?<=\d) ?[×x] ?(?=\d)", " умножить на "),
        (r"(\d) ?± ?", r"\1 плюс минус "),
        (r"&", " и "),
    ),
    feminine=frozenset({"копейка", "тысяча", "иена"}),
)  # fmt: skip


_LANGUAGES = {each.code: each for each in (_EN, _DE, _FR, _ES, _RU)}


@lru_cache
def _rules(code: str) -> list[Rule]:
    return _LANGUAGES[code].rules() if code in _LANGUAGES else []


@lru_cache
def abbreviations(code: str) -> re.Pattern | None:
    """What is written with a point that belongs to it, in a language such as "de"; None where none
    is known."""
    if (language := _LANGUAGES.get(code)) is None:
        return None
    known = [a for a in language.abbreviations if r"\." in a]
    known += [re.escape(unit) for unit in language.units if unit.endswith(".")]
    # what must follow one is no part of it
    return re.compile(rf"(?<!\w)(?:{'|'.join(known)})") if known else None
