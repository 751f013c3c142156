"""What generation starts from: texts; notes of the seconds asked for; prompts of a codec that keeps
loudness beside the codes."""

import dataclasses
import gzip
import json
from types import SimpleNamespace

import pytest
import soundfile
import torch
from midi_files import performance, write_midi
from token_fixtures import INFO as TOKENS
from token_fixtures import make_tokens

import rvqlm.bin.midi
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.streaming import Encoded
from rvqlm.data.conditions import load_info
from rvqlm.data.index import TokenDataset, manifest_path
from rvqlm.data.notes import NoteTimes
from rvqlm.data.scales import stored_scales
from rvqlm.errors import UserError
from rvqlm.frontends.midi import MidiFrontEnd
from rvqlm.frontends.midi_file import read_midi
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.inference.conditions import ConditionArgs, conditions_of, from_arguments
from rvqlm.inference.prompts import from_audio

INFO = CodecInfo("loud", "0" * 16, 8000, 80, 1, 4, segment=(10, 720))


class Loud(Codec):
    """All codes are 1; the scale of a segment is its largest sample."""

    default_scale = 0.5

    def __init__(self):
        super().__init__(INFO)

    def encode(self, audio, lengths=None):
        raise NotImplementedError

    decode = encode

    def encode_blocks(self, blocks, step):
        audio = torch.cat(list(blocks), 1)
        frames = self.info.num_frames(audio.shape[1])
        starts = range(0, self.info.num_scales(frames) * 720, 720)
        scales = [float(audio[:, at : at + 800].max()) for at in starts]
        yield Encoded(torch.ones(frames, 1, dtype=torch.int64), torch.tensor(scales))


def test_prompts_keep_their_scales(tmp_path):
    ramp = torch.arange(4000.0) / 8000
    soundfile.write(tmp_path / "a.wav", ramp.numpy(), 8000, subtype="FLOAT")
    codec = Loud()
    for frames, count in ((10, 1), (25, 3)):
        (prompt,) = from_audio([str(tmp_path / "a.wav")], codec, frames)
        assert len(prompt.codes) == frames and len(prompt.scales) == count
        # loudest at the end of each segment: what follows the prompt is not encoded
        assert prompt.scales[-1] * 8000 == INFO.num_samples(frames) - 1


def test_what_follows_a_prompt_is_as_loud_as_its_end():
    codec = Loud()
    assert codec.scales_for(35, torch.tensor([0.1, 0.3])).tolist() == [
        *torch.tensor([0.1, 0.3, 0.3, 0.3]).tolist()
    ]
    assert codec.scales_for(11).tolist() == [0.5, 0.5]
    assert codec.scales_for(10, torch.tensor([0.25, 0.5])).tolist() == [0.25]
    assert codec.scales_for(0).tolist() == []
    codec.info = dataclasses.replace(INFO, segment=None)
    assert codec.scales_for(35) is None


def test_stored_scales_are_read_for_codecs_that_have_them(tmp_path):
    cuts = [{"id": i, "custom": {"scales": [0.1, 0.7]}} for i in "ab"] + [{"id": "c"}]
    path = manifest_path(tmp_path, "dev")
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    found = stored_scales(tmp_path, "dev", INFO, {"b", "c"})
    assert list(found) == ["b"] and found["b"].equal(torch.tensor([0.1, 0.7]))
    plain = dataclasses.replace(INFO, segment=None)
    assert stored_scales(tmp_path, "dev", plain, {"b"}) == {}


def test_notes_of_the_seconds_asked_for(tmp_path, capsys):
    path, front_end = tmp_path / "a.mid", MidiFrontEnd()
    write_midi(path, *performance(4, 60, 300), drums=[(1, 1, 36, 90)])
    notes, codec = read_midi(path).notes, SimpleNamespace(info=TOKENS)  # 50 frames a second
    infos = {"midi": front_end.info(4.0)}

    def given(frames, **words):
        args = ConditionArgs(midi=(str(path),), **words)
        return from_arguments(args, infos, codec, frames)[0].values["midi"]

    part = notes.between(0, 5)
    assert given(250).tolist() == front_end.tokens(part).tolist() and 0 < len(part.time) < 50
    said = capsys.readouterr().err
    assert said == f"{path}: {len(part.time)} of 300 notes, those in 0 to 5 s; " + (
        "drum notes left out: 1\n"
    )
    later = notes.between(12.5, 17.5)
    assert given(250, midi_start=12.5).tolist() == front_end.tokens(later).tolist()
    args = ConditionArgs(midi=(str(path),), midi_start=12.5)
    about = from_arguments(args, infos, codec, 250)[0].about
    assert about == {"midi": str(path), "midi_start": "12.5"}  # what heard notes are compared with
    assert given(4000).tolist() == front_end.tokens(notes).tolist()
    assert "of 300" not in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(
        UserError, match=r"none of its 300 notes sounds in 70 to 75 s, they begin from"
    ):
        given(250, midi_start=70.0)


def test_notes_of_held_out_cuts_up_to_where_is_generated(tmp_path):
    make_tokens(tmp_path / "tokens", [500, 400], split="test")
    for n in range(2):
        write_midi(tmp_path / f"midi/cut-{n:04d}.mid", *performance(n, 8, 60))
    words = ["--manifest-dir", str(tmp_path / "tokens"), "--midi-dir", str(tmp_path / "midi")]
    assert rvqlm.bin.midi.main(words) == 0
    dataset = TokenDataset.open(tmp_path / "tokens", "test")
    infos = {"midi": load_info(tmp_path / "tokens", "midi", "")}
    model = SimpleNamespace(conditions=infos, info=TOKENS)

    def lengths(*frames):
        found = conditions_of(dataset, [0, 1], model, 0, ConditionArgs(), *frames)
        return [len(given.values["midi"]) for given in found]

    times = [read_midi(tmp_path / f"midi/cut-{n:04d}.mid").notes.time for n in range(2)]
    assert lengths() == [60, 60] == lengths(600)
    assert lengths(100) == [int((time < 2).sum()) for time in times] and min(lengths(100)) > 0
    NoteTimes.path(tmp_path / "tokens", "test").unlink()  # of an earlier version: all of them
    assert lengths(100) == [60, 60]


def given(type: str, symbols: str, args: ConditionArgs):
    """(what the user gave, symbols) of each sample, by a model whose text has these symbols."""
    table = SymbolTable.of(["<space>", *symbols])
    front_end = TextFrontEnd(TextSettings(type), table)
    found = from_arguments(args, {"text": front_end.info(4.0)}, Loud(), 100)
    return [(g.about, front_end.decode(g.values["text"][:, 0])) for g in found]


def test_a_file_of_texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffthe fox\r\n\r\n  “the”\u2028dog\r\nfox".encode())
    found = given("chars", "thefoxdg", ConditionArgs(text_file=str(path)))
    assert found == [
        ({"text": "the fox"}, "the fox"),
        ({"text": "“the”\u2028dog"}, "the dog"),
        ({"text": "fox"}, "fox"),
    ]
    args = ConditionArgs(text_file=str(path), one_text=True)
    ((about, said),) = given("chars", "thefoxdg", args)
    assert said == "the fox the dog fox" and about["text"].count("\n") == 2
    assert ConditionArgs(one_text=True).problems() == ["--one-text goes with --text-file"]
    path.write_bytes(b"\xff\xfea\0")
    with pytest.raises(UserError, match=r"texts\.txt: cannot be read"):
        given("chars", "a", ConditionArgs(text_file=str(path)))


@pytest.mark.parametrize("text", ["", '""', "!!!", "…"])
@pytest.mark.parametrize("type", ["chars", "phonemes"])
def test_a_text_without_a_word_is_refused(type, text):
    with pytest.raises(UserError, match="no word in it that could be said"):
        given(type, 'a!"…ˈeɪ', ConditionArgs(text=("a", text)))


def test_a_text_has_a_language():
    symbols = "mʲˈirwɜːld"
    args = ConditionArgs(text=("мир",), language="Russian")
    found = given("phonemes", symbols, args)
    assert found == [({"text": "мир", "language": "Russian"}, "mʲˈir")]
    assert given("phonemes", symbols, ConditionArgs(text=("world",)))[0][1] == "wˈɜːld"
    with pytest.raises(UserError, match="'мир' is written in Cyrillic letters"):
        given("phonemes", symbols, ConditionArgs(text=("мир",)))
    with pytest.raises(UserError, match="only phonemes have one"):
        given("chars", "мир", args)
