"""Alignments that others made: in supervisions and in folders of TextGrids."""

import pytest

from rvqlm.errors import UserError
from rvqlm.exchange.alignments import Supervisions, TextGrids, open_items
from rvqlm.exchange.subtitles import cues, srt, vtt
from rvqlm.exchange.textgrid import write_textgrid
from rvqlm.frontends.aligned import Item


def cut_with(*alignments):
    return {"id": "a", "supervisions": [{"alignment": alignment} for alignment in alignments]}


def test_items_of_supervisions_in_their_order():
    old = {"symbol": "b", "start": 0.0, "duration": 0.25}  # lhotse before 1.8
    cut = cut_with({"phone": [["k", 0.5, 0.25, None]]}, None, {"phone": [old], "word": []})
    read = Supervisions().items
    assert read(cut, "phone") == [Item("b", 0.0, 0.25), Item("k", 0.5, 0.75)]
    with pytest.raises(UserError, match="no alignment 'word' in its supervisions; they have phone"):
        read(cut, "word")
    with pytest.raises(UserError, match="no alignment 'phone' in its supervisions"):
        read({"id": "a"}, "phone")
    for bad in (["k", "0.5", 0.25], ["k", 0.5], [1, 0.5, 0.25], ["k", 0.5, float("nan")]):
        with pytest.raises(UserError, match="an item of its alignment is damaged"):
            read(cut_with({"phone": [bad]}), "phone")


def test_textgrids_of_cuts_and_of_recordings(tmp_path):
    with pytest.raises(UserError, match="no such folder of TextGrids"):
        open_items(str(tmp_path / "no"))
    grids = TextGrids(tmp_path)
    tiers = {
        "ann - phones": [Item("k", 1.0, 1.5), Item("t", 4.5, 5.0)],
        "bob - Phones": [Item("s", 2.0, 2.5)],
    }
    write_textgrid(tmp_path / "disc" / "rec.TextGrid", tiers, 6.0)
    cut = {"id": "rec-2", "start": 0.0, "duration": 2.0, "recording": {"id": "disc/rec"},
           "features": {"start": 0.0}, "supervisions": [{"recording_id": "disc/rec"}],
           "custom": {"recording_start": 0.75}}  # fmt: skip
    spoken = [i for i in grids.items(cut, "phone") if i.label]
    assert spoken == [Item("k", 0.25, 0.75), Item("s", 1.25, 1.75)]
    with pytest.raises(UserError, match=r"no tier words in .*; there are ann - phones"):
        grids.items(cut, "word")
    with pytest.raises(UserError, match=r"no rec-2.TextGrid in"):
        grids.items({**cut, "custom": {}}, "phone")  # where it begins is not known
    write_textgrid(tmp_path / "rec-2.TextGrid", {"phone": [Item("m", 0.0, 2.0)]}, 2.0)
    assert grids.items(cut, "phone") == [Item("m", 0.0, 2.0)]  # its own goes first


def test_subtitles_break_at_pauses_and_width():
    words = [Item("Good", 0.1, 0.4), Item("<morning>", 0.4, 1.0), Item("x" * 40, 1.1, 2.0)]
    words += [Item("Ah", 3599.5, 3600.25)]
    found = cues(words)
    assert [cue.label for cue in found] == ["Good <morning>", "x" * 40, "Ah"]
    assert srt(found[::2]) == (
        "1\n00:00:00,100 --> 00:00:01,000\nGood <morning>\n\n2\n00:59:59,500 --> 01:00:00,250\nAh\n"
    )
    assert vtt(found[:1]) == "WEBVTT\n\n00:00:00.100 --> 00:00:01.000\nGood &lt;morning&gt;\n"
