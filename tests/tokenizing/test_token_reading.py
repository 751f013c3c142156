"""The thread that reads ahead: order, errors, and an end at any moment."""

import threading
import time

import numpy as np
import pytest
import soundfile

from rvqlm.audio.load import load_file
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.reader import BadAudio
from rvqlm.audio.source import Item
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.tokenizing.reading import ReadAhead

INFO = CodecInfo("test", "0" * 16, 8000, 40, 2, 256)


@pytest.fixture
def items(tmp_path):
    found = []
    for i in range(6):
        path = tmp_path / f"{i}.wav"
        audio = np.random.default_rng(i).uniform(-1, 1, 1 + 100_000 * (i % 3))
        soundfile.write(path, audio, 8000, subtype="FLOAT")
        found.append(Item(f"id{i}", str(path)))
    found.insert(2, Item("gone", str(tmp_path / "gone.wav")))
    found.insert(4, Item("bad", found[0].audio, "for a reason"))
    return found


def reading_threads():
    return [t for t in threading.enumerate() if t.name == "rvqlm-reading"]


def test_items_arrive_in_order_with_their_samples(items):
    with ReadAhead(iter(items), INFO, AudioConfig(), 2) as reading:
        seen = []
        for piece in reading:
            seen.append(piece.item.id)
            if piece.item.id in ("gone", "bad"):
                with pytest.raises(BadAudio, match=r"no such file|for a reason"):
                    list(piece.blocks())
                continue
            audio = np.concatenate([b.numpy() for b in piece.blocks()], 1)
            assert np.array_equal(audio, load_file(piece.item.audio, 8000))
            assert piece.stream.cut.id == piece.item.id
            assert piece.stream.num_samples == audio.shape[1]
    assert seen == [i.id for i in items]
    assert not reading_threads()


def test_what_nobody_wants_is_passed_over(items):
    with ReadAhead(iter(items), INFO, AudioConfig(), 2) as reading:
        found = []
        for piece in reading:
            if piece.item.id == "id2":
                next(piece.blocks())  # the first of several
            found.append(piece.item.id)
    assert found == [i.id for i in items]


def test_errors_of_the_input_come_through(items):
    def broken():
        yield items[0]
        raise UserError("item 2 is no lhotse recording")

    with ReadAhead(broken(), INFO, AudioConfig()) as reading:
        pieces = iter(reading)
        list(next(pieces).blocks())
        with pytest.raises(UserError, match="item 2"):
            next(pieces)
    assert not reading_threads()


@pytest.mark.parametrize("error, ends", [(OSError(24, "Too many open files"), True),
                                         (AssertionError("odd"), False)])  # fmt: skip
def test_only_what_is_wrong_with_an_item_is_its_own(items, monkeypatch, error, ends):
    """An error of the machine would be that of all that follow: none of them is skipped for it."""

    def fail(*args):
        raise error

    monkeypatch.setattr(Item, "open", fail)
    with ReadAhead(iter(items[:1]), INFO, AudioConfig()) as reading:
        with pytest.raises(type(error) if ends else BadAudio, match=r"Too many|unreadable.*odd"):
            list(next(iter(reading)).blocks())


def test_it_stops_wherever_it_is(items):
    """While it waits for room, in the middle of a file, and before anything was taken."""
    for taken in (0, 1, 3):
        with ReadAhead(iter(items * 50), INFO, AudioConfig(), 1) as reading:
            pieces = iter(reading)
            for _ in range(taken):
                next(pieces)
            time.sleep(0.02)
        assert not reading_threads()


def test_it_reads_ahead_no_further_than_allowed(items):
    opened = []

    class Noted(Item):
        def open(self, *args):
            opened.append(self.id)
            return super().open(*args)

    many = [Noted(str(i), items[0].audio) for i in range(100)]
    with ReadAhead(iter(many), INFO, AudioConfig(), 6):
        for _ in range(100):
            time.sleep(0.01)
            if len(opened) >= 3:
                break
        time.sleep(0.1)
        assert 2 <= len(opened) <= 4  # three messages an item
