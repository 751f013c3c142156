"""Codes that arrive one by one: the audio of all of them, as soon as it is settled."""

import pytest
import torch
from tiny_codecs import dac, encodec, encodec_segments, fill_codebooks, mimi

from rvqlm.codecs.chunking import decode_long
from rvqlm.codecs.pretrained import from_model
from rvqlm.codecs.registry import load_codec

KINDS = {
    "dac": dac,
    "encodec": encodec,
    "encodec-both-sides": lambda: encodec(causal=False),
    "mimi": mimi,
    "segments": lambda: encodec_segments(overlap=0.01),
    "spectral": None,
}


@pytest.fixture(scope="module", params=KINDS)
def codec(request):
    torch.manual_seed(0)
    if request.param == "spectral":
        return load_codec("spectral")
    model = KINDS[request.param]()
    if request.param != "dac":
        fill_codebooks(model, torch.randn(1, model.config.audio_channels, 16000))
    return from_model(model, request.param)


@pytest.mark.parametrize("piece", [1, 7])
def test_pieces_give_the_audio_of_the_whole_as_soon_as_they_can(codec, piece):
    info = codec.info
    frames = 90 if info.segment is None else 400
    codes = torch.randint(info.codebook_size, (frames, info.num_codebooks))
    whole = decode_long(codec, codes)
    decoder, made, samples = codec.piecewise(), [], 0
    for end in range(piece, len(codes) + piece, piece):
        audio = decoder(codes[end - piece : end], last=end >= len(codes))
        if audio is not None:
            made.append(audio)
            samples += audio.shape[1]
        if end < len(codes):  # all that can be said, and no more
            assert not samples or decoder.needs(samples) <= end
            assert decoder.needs(samples + 1) > end
    torch.testing.assert_close(torch.cat(made, 1), whole, atol=1e-4, rtol=1e-4)


def test_nothing_gives_nothing(codec):
    assert codec.piecewise()(None, last=True) is None


def test_copies_go_on_from_the_same_codes(codec):
    """In turns, each with codes of its own, and each as if there were no other."""
    frames = 30 if codec.info.segment is None else 230
    shape = 4, frames, codec.info.num_codebooks
    begin, *ends = torch.randint(codec.info.codebook_size, shape)

    def begun():
        decoder = codec.piecewise()
        decoder(begin)
        return decoder

    first = begun()
    kept, size = first.copied()
    assert 0 < size < 4e6
    copies, alone = [first, *(kept.copied()[0] for _ in ends[1:])], [begun() for _ in ends]
    for part, last in [(slice(9), False), (slice(9, None), True)]:
        for one, other, end in zip(copies, alone, ends):
            got, wanted = one(end[part], last), other(end[part], last)
            assert (got is None) == (wanted is None)
            assert got is None or torch.equal(got, wanted)
