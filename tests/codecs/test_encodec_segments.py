"""The 48 kHz kind of EnCodec against transformers' own class: codes, scales and audio."""

import pytest
import torch
from tiny_codecs import encodec, encodec_segments, fill_codebooks, noise

from rvqlm.codecs.chunking import (
    decode_long,
    decode_stream,
    encode_many,
    encode_stream,
    encode_whole,
)
from rvqlm.codecs.pretrained import from_model
from rvqlm.errors import UserError

HOP, SIZE, STRIDE = 8, 800, 760
LENGTHS = [1, HOP, 801, 799, SIZE + 200, STRIDE + SIZE, STRIDE + SIZE + 1, 5 * STRIDE + 333, 2300]


def tiny():
    torch.manual_seed(0)
    model = fill_codebooks(encodec_segments(), torch.randn(1, 2, 4000)).eval()
    # loud and quiet segments must differ in their codes' audio, silence must not divide by zero
    return from_model(model, "facebook/encodec_48khz")


@pytest.fixture(scope="module")
def codec():
    return tiny()


def swelling(samples, seed=1):
    return noise(2, samples, seed=seed) * torch.linspace(0.01, 1, samples)


def test_description(codec):
    info = codec.info
    assert (info.channels, info.hop, info.segment) == (2, HOP, (100, STRIDE))
    assert info.num_codebooks == 6 and codec.default_scale == 0.1
    assert float(info.frame_rate) == pytest.approx(100 * 8000 / STRIDE)
    assert codec.bounded_memory
    other = from_model(encodec_segments(overlap=0.01), "x")
    assert other.info.segment == (100, 792)


@pytest.mark.parametrize("samples", [1, HOP, 333, SIZE, SIZE + 200, 2 * STRIDE + 637, 4800])
def test_equals_the_model_itself(codec, samples):
    audio = swelling(samples)[None]
    with torch.no_grad():
        made = codec.model.encode(audio, bandwidth=24.0)
        cut = made.last_frame_pad_length
        sound = codec.model.decode(
            made.audio_codes, made.audio_scales, last_frame_pad_length=cut
        ).audio_values
    if samples == SIZE:  # transformers encodes the overlap at the end once more
        made.audio_codes, made.audio_scales, cut = made.audio_codes[:1], made.audio_scales[:1], 0
        with torch.no_grad():
            sound = codec.model.decode(made.audio_codes, made.audio_scales).audio_values
    expected = made.audio_codes[:, 0].transpose(1, 2).flatten(0, 1)  # (n * 100, K)
    codes, lengths, scales = codec.encode_with_scales(audio)
    assert codes[0].equal(expected[: len(expected) - cut]) and len(codes[0]) == int(lengths[0])
    assert scales[0].equal(torch.cat(made.audio_scales)[:, 0])
    assert codec.encode(audio)[0].equal(codes)
    assert codec.decode(codes, scales).equal(sound)
    whole = encode_whole(codec, audio[0])
    assert whole.codes.equal(codes[0]) and whole.scales.equal(scales[0])
    assert decode_long(codec, whole.codes, scales=whole.scales).equal(sound[0])


@pytest.mark.parametrize("samples", LENGTHS)
def test_streams_equal_whole_and_nothing_is_lost(codec, samples):
    audio = swelling(samples)
    codes, lengths, scales = codec.encode_with_scales(audio[None])
    T = codec.info.num_frames(samples)
    assert codes.shape == (1, T, 6) and lengths.tolist() == [T]
    for size in (7, 760, 10000):
        parts = list(encode_stream(codec, audio.split(size, 1), 0.2))
        assert torch.cat([p.codes for p in parts]).equal(codes[0])
        assert torch.cat([p.scales for p in parts]).equal(scales[0])
        assert all(len(p.scales) == -(-len(p.codes) // 100) for p in parts)
    sound = codec.decode(codes, scales)[0]
    assert samples <= sound.shape[1] == codec.info.num_samples(T) < samples + HOP
    for seconds in (0.001, 0.1, 9):
        parts = list(decode_stream(codec, codes[0].to(torch.int16), seconds, scales[0]))
        assert torch.cat(parts, 1).equal(sound)


def test_batches_equal_single_items(codec):
    items = [swelling(n, seed=n) for n in LENGTHS]
    batch = torch.full((len(items), 2, max(LENGTHS)), 0.3)
    for row, item in zip(batch, items, strict=True):
        row[:, : item.shape[1]] = item
    codes, lengths, scales = codec.encode_with_scales(batch, torch.tensor(LENGTHS))
    many = encode_many(codec, items, 0.2)
    for i, item in enumerate(items):
        single = encode_whole(codec, item)
        n = len(single.scales)
        assert codes[i, : lengths[i]].equal(single.codes)
        assert scales[i, :n].equal(single.scales) and not scales[i, n:].any()
        # other batches, other rounding
        assert (many[i].codes != single.codes).float().mean() < 0.01
        assert torch.allclose(many[i].scales, single.scales)
    a = codec.decode(codes[:, :150], torch.full((len(items), 2), 0.5))
    b = codec.decode(codes[2:3, :150], torch.full((1, 2), 0.5))
    assert torch.allclose(a[2], b[0], atol=1e-5)


def test_several_segments_in_one_call_change_nothing(codec, monkeypatch):
    audio = swelling(5 * STRIDE + 333)
    one = encode_whole(codec, audio)
    calls, encode = [], codec.encode_pieces
    monkeypatch.setattr(type(codec), "_count", lambda self, step: 3)
    monkeypatch.setattr(codec, "encode_pieces", lambda x: calls.append(len(x)) or encode(x))
    some = encode_whole(codec, audio, 10.0)
    assert calls == [3, 1, 1, 1]
    assert (some.codes != one.codes).float().mean() < 0.01
    assert torch.allclose(some.scales, one.scales)
    sound = decode_long(codec, one.codes, 10.0, one.scales)
    monkeypatch.undo()
    alone = decode_long(codec, one.codes, 10.0, one.scales)
    assert torch.allclose(sound, alone, atol=1e-5)


def test_scales_are_loudness(codec):
    codes, _, scales = codec.encode_with_scales(swelling(2300)[None])
    quiet, loud = codec.decode(codes, scales), codec.decode(codes, 2 * scales)
    assert torch.allclose(2 * quiet, loud, atol=1e-5)
    default = codec.decode(codes)
    assert default.equal(codec.decode(codes, torch.full_like(scales, 0.1)))
    assert decode_long(codec, codes[0]).equal(default[0])
    silent = encode_whole(codec, torch.zeros(2, 900))
    assert silent.scales.tolist() == pytest.approx([1e-8, 1e-8])
    assert codec.decode(codes, torch.zeros_like(scales)).abs().max() == 0


@pytest.mark.parametrize("frames", [0, 1, 99, 100, 101, 105, 201, 250])
def test_generated_codes_of_any_length_are_decoded(codec, frames):
    codes = torch.randint(0, 16, (frames, 4), generator=torch.Generator().manual_seed(0))
    sound = decode_long(codec, codes, 0.1)
    assert sound.shape == (2, codec.info.num_samples(frames)) and sound.isfinite().all()
    assert sound.equal(codec.decode(codes[None])[0])


def test_scales_that_do_not_fit_are_refused(codec):
    codes = torch.zeros(250, 2, dtype=torch.int64)
    for count in (2, 4):
        with pytest.raises(ValueError, match="scales"):
            decode_long(codec, codes, scales=torch.ones(count))
        with pytest.raises(ValueError, match="3 segments"):
            codec.decode(codes[None], torch.ones(1, count))


def test_other_types_of_numbers():
    codec = tiny().set_dtype(torch.bfloat16)
    whole = encode_whole(codec, swelling(2300))
    assert whole.scales.equal(encode_whole(tiny(), swelling(2300)).scales)
    sound = decode_long(codec, whole.codes, scales=whole.scales)
    exact = decode_long(tiny(), whole.codes, scales=whole.scales)
    assert float((sound - exact).norm() / exact.norm()) < 0.05


def test_other_ways_to_cut_are_refused():
    for kwargs in (
        {"normalize": True},
        {"chunk_length_s": 1.0, "overlap": 0.01},
        {"normalize": True, "chunk_length_s": 1.0},
        {"normalize": True, "chunk_length_s": 0.1005, "overlap": 0.01},
    ):
        with pytest.raises(UserError, match=r"codec x: this EnCodec has normalize=.*48 kHz"):
            from_model(encodec(**kwargs), "x")
