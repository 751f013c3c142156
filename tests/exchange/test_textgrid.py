"""TextGrids: what was written is read, Praat's forms and encodings, and what is none."""

import numpy as np
import pytest

from rvqlm.errors import UserError
from rvqlm.exchange.textgrid import read_textgrid, write_textgrid
from rvqlm.frontends.aligned import Item

SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
3
"IntervalTier"
"A - words"
0
1.5
2
0
0.25
""
0.25
1.5
"say ""no"" 3"
"TextTier"
"points"
0
1.5
1
0.5
"here"
"IntervalTier"
"phones"
0
1.5
1
0
1.5
"ɪ"
"""


def test_short_form_points_and_encodings(tmp_path):
    path = tmp_path / "a.TextGrid"
    expected = {
        "A - words": [Item("", 0, 0.25), Item('say "no" 3', 0.25, 1.5)],
        "phones": [Item("ɪ", 0, 1.5)],
    }
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(SHORT, encoding=encoding)
        assert read_textgrid(path) == expected
    path.write_bytes(SHORT.replace("\n", "\r\n").encode())
    assert read_textgrid(path) == expected
    # what is not free-standing is a comment to Praat, and so is what follows a "!"
    path.write_text(SHORT.replace("<exists>\n3", "<exists> ! 7\ntiers5: size(3) = 3"))
    assert read_textgrid(path) == expected


def test_what_is_written_is_read(tmp_path):
    words = [Item("one", 0.1, 0.4), Item("l", 0.4, 0.4), Item('"two"', 0.4, 1.0)]
    path = tmp_path / "deeper" / "b.TextGrid"
    write_textgrid(path, {"words": words, "none": []}, 1.25)
    assert path.read_text().startswith(
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin'
    )
    # Praat has no interval without duration: it takes 0.1 ms of what follows
    said = [words[0], Item("l", 0.4, 0.4001), Item('"two"', 0.4001, 1.0)]
    words = [Item("", 0.0, 0.1), *said, Item("", 1.0, 1.25)]
    assert read_textgrid(path) == {"words": words, "none": [Item("", 0.0, 1.25)]}


def test_what_is_no_textgrid_is_one_line(tmp_path):
    path = tmp_path / "c.TextGrid"
    path.write_text(SHORT)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole), 40):
        path.write_bytes(whole[:cut])
        try:
            read_textgrid(path)
        except UserError as e:
            assert str(e).startswith(f"{path} is no TextGrid (") and "\n" not in str(e)
    for text, message in (
        ("", "cut short"),
        ('"ooTextFile" "Sound"', "'Sound'"),
        (SHORT.replace('"TextTier"', '"Tier"'), "kind 'Tier'"),
        (SHORT.replace("1.5", "1e400"), "1e400"),
        (SHORT.replace("0.25", "-1"), "-1"),
        (SHORT.replace('"phones"', "7"), "7 where a string"),
        (SHORT.replace("<exists>\n3", "<exists>\nthree"), "where a number"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_textgrid(path)
    with pytest.raises(UserError, match=r"(?i)no such file"):
        read_textgrid(tmp_path / "no.TextGrid")
