"""The embedded codec: exact codes, lengths, silence, fewer levels, fingerprint, sane spectra."""

import ctypes
import json
import math

import numpy as np
import pytest
import torch
from quantizer_trainer import QuantizerTrainer
from safetensors import safe_open
from safetensors.torch import save_file

from rvqlm.codecs import spectral
from rvqlm.codecs.chunking import decode_stream, encode_whole
from rvqlm.codecs.griffin_lim import GriffinLim, initial_phases
from rvqlm.codecs.registry import load_codec
from rvqlm.codecs.spectral import ASSET, SpectralCodec, load_net, save_weights
from rvqlm.codecs.spectral_model import ResidualQuantizer, SpectralConfig, SpectralNet
from rvqlm.errors import UserError

HOP = 320


@pytest.fixture(scope="module")
def codec() -> SpectralCodec:
    return SpectralCodec.load()


def sweep(samples: int, seed: int = 0) -> torch.Tensor:
    """(1, samples): gliding harmonics, noise bursts and silence, so that codes vary."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(samples) / 16000
    pitch = 120 + 60 * torch.sin(2 * math.pi * 0.7 * t + seed)
    phase = 2 * math.pi * torch.cumsum(pitch, 0) / 16000
    voice = sum(torch.sin(h * phase) / h for h in range(1, 20))
    gate = (torch.sin(2 * math.pi * 1.3 * t) > -0.3).float()
    noise = torch.randn(samples, generator=generator) * (torch.sin(2 * math.pi * 2.1 * t) > 0.8)
    return (0.15 * voice * gate + 0.05 * noise)[None].float()


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 6399, 34560, 34561, 80000 - 7])
def test_lengths(codec, samples):
    codes, lengths = codec.encode(sweep(samples)[None])
    frames = -(-samples // HOP)
    assert codes.shape == (1, frames, 8) and lengths.tolist() == [frames]
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < 1024
    audio = codec.decode(codes)
    assert audio.shape == (1, 1, frames * HOP) and audio.dtype == torch.float32
    assert audio.isfinite().all()


def test_nothing_to_encode_is_refused(codec):
    with pytest.raises(ValueError, match="samples > 0"):
        codec.encode(torch.zeros(1, 1, 0))
    assert codec.decode(torch.zeros(2, 0, 8, dtype=torch.int64)).shape == (2, 1, 0)


@pytest.mark.parametrize("chunk_frames", [1, 7, 64, 107, 108, 109, 333])
def test_chunks_equal_whole(codec, chunk_frames):
    audio = sweep(401 * HOP - 123, seed=1)
    if chunk_frames == 1:
        audio = audio[:, : 40 * HOP - 5]
    whole = codec.encode(audio[None])[0][0]
    chunked = encode_whole(codec, audio, (chunk_frames + 0.5) * HOP / 16000).codes
    assert torch.equal(whole, chunked)


def test_every_offset_gives_the_same_codes(codec):
    """A frame's codes do not depend on where in a block it falls."""
    context, audio = codec.context_frames, sweep(220 * HOP, seed=2)
    whole = codec.encode(audio[None])[0][0]
    for offset in range(0, 115, 3):
        part = codec.encode(audio[None, :, offset * HOP :])[0][0]
        assert torch.equal(whole[offset + context :], part[context:]), offset


def test_context_is_needed_and_enough(codec):
    """One frame less than `context_frames` would not do for every input; the number is tight."""
    context, audio = codec.context_frames, sweep(60 * HOP, seed=3)
    changed = audio.clone()
    changed[:, 40 * HOP :] = 0.3 * torch.randn(20 * HOP, generator=torch.Generator().manual_seed(0))
    a, b = codec.net.encode(codec.net.spectra(audio)), codec.net.encode(codec.net.spectra(changed))
    differs = (a != b).any(-1)[0].nonzero()[0].item()
    assert 40 - context <= differs <= 40 - context + 1


def test_batch_equals_single(codec):
    items = [sweep(n, seed=n) for n in (5000, 31999, 1, 70000)]
    batch = torch.full((4, 1, 70000), 0.25)  # what lies past an item must not matter
    for row, item in zip(batch, items):
        row[:, : item.shape[1]] = item
    lengths = torch.tensor([i.shape[1] for i in items])
    codes, code_lengths = codec.encode(batch, lengths)
    for i, item in enumerate(items):
        single = codec.encode(item[None])[0][0]
        assert len(single) == code_lengths[i]
        assert torch.equal(codes[i, : len(single)], single)
    audio = codec.decode(codes)
    assert torch.equal(audio[3], codec.decode(codes[3:])[0])


def test_threads_change_nothing(codec):
    audio, before = sweep(50000, seed=5)[None], torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            codes = codec.encode(audio)[0]
            results.append((codes, codec.decode(codes)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for codes, decoded in results[1:]:
        assert torch.equal(codes, results[0][0]) and torch.equal(decoded, results[0][1])


def test_what_is_prepared_for_encoding_follows_its_weights():
    """A module that moves or is cast leaves nothing of its own behind."""
    audio = sweep(20 * HOP)[None]
    codec = SpectralCodec.load()
    codes = codec.encode(audio)[0]
    assert codec.double().encode(audio.double())[0].equal(codes)
    codec.to("meta")
    assert codec.net.quantizer._prepared is None


def test_the_codec_computes_without_autocast_and_tf32(codec, monkeypatch):
    audio, seen = sweep(20 * HOP)[None], []
    encode = SpectralNet.encode
    monkeypatch.setattr(
        SpectralNet,
        "encode",
        lambda net, x: seen.append(torch.backends.cudnn.allow_tf32) or encode(net, x),
    )
    with torch.autocast("cpu", torch.bfloat16):
        codes = codec.encode(audio)[0]
    assert codes.equal(codec.encode(audio)[0]) and seen and not any(seen)


def test_silence_stays_silent(codec):
    codes, _ = codec.encode(torch.zeros(1, 1, 16000))
    assert codec.decode(codes).abs().max() < 1e-3
    assert (codes[0, 15:-15] == codes[0, 15]).all()


def test_long_signals_are_decoded_in_pieces(codec, monkeypatch):
    """Phases are carried on from piece to piece, so that there are no seams."""
    codes, _ = codec.encode(sweep(300 * HOP, seed=8)[None])
    whole = codec.decode(codes)
    monkeypatch.setattr(spectral, "PIECE_FRAMES", 80)
    torch.testing.assert_close(codec.decode(codes), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seconds", [0.1, 2.0, 60.0])
def test_streams_of_codes_give_the_same_audio_in_bounded_memory(codec, monkeypatch, seconds):
    codes, _ = codec.encode(sweep(500 * HOP, seed=9)[None])
    monkeypatch.setattr(spectral, "PIECE_FRAMES", 60)
    whole = codec.decode(codes)
    pieces = list(decode_stream(codec, codes[0], seconds))
    assert torch.equal(torch.cat(pieces, 1), whole[0])
    if seconds < 1:  # what comes in bit by bit goes out bit by bit
        assert len(pieces) > 5 and max(p.shape[1] for p in pieces) < 150 * HOP
    assert [p.shape[1] for p in decode_stream(codec, codes[0, :1])] == [HOP]
    assert list(decode_stream(codec, codes[0, :0])) == []


def test_first_levels_serve_alone(codec):
    audio = sweep(32000, seed=6)[None]
    full, _ = codec.encode(audio)
    few = load_codec("spectral", num_codebooks=3)
    assert few.info.num_codebooks == 3 and few.info.bitrate == 1500
    codes, _ = few.encode(audio)
    assert torch.equal(codes, full[..., :3])
    assert torch.equal(few.decode(codes), codec.decode(full[..., :3]))
    with pytest.raises(UserError, match="1 to 8"):
        load_codec("spectral", num_codebooks=9)
    with pytest.raises(ValueError, match="decodes"):
        few.decode(full)


def test_weights_file(codec):
    assert ASSET.stat().st_size < 5_000_000
    assert codec.info.name == "spectral" and codec.info.sampling_rate == 16000
    assert codec.info.hop == HOP and codec.info.bitrate == 4000
    assert codec.info.fingerprint == SpectralCodec.load().info.fingerprint


def test_fingerprint_follows_weights_and_survives_saving(codec, tmp_path):
    net = load_net(ASSET)
    save_weights(net, tmp_path / "same.safetensors")
    same = SpectralCodec.load(tmp_path / "same.safetensors")
    assert same.info.fingerprint == codec.info.fingerprint
    with torch.no_grad():
        net.quantizer.codebooks[7, 5, 0] += 0.5
    save_weights(net, tmp_path / "other.safetensors")
    other = SpectralCodec.load(tmp_path / "other.safetensors")
    assert other.info.fingerprint != codec.info.fingerprint
    # fewer levels of the same weights are the same codec with another K
    assert SpectralCodec.load(num_codebooks=4).info.fingerprint == codec.info.fingerprint


def test_bad_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        SpectralCodec.load(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match=r"text\.safetensors: not weights"):
        SpectralCodec.load(tmp_path / "text.safetensors")


def speak(text: str) -> torch.Tensor:
    """(1, S) at 16 kHz from the wheel's espeak-ng."""
    import espeakng_loader as loader
    import soxr

    library = ctypes.CDLL(loader.get_library_path())
    rate = library.espeak_Initialize(2, 0, str(loader.get_data_path()).encode(), 0)
    parts: list[np.ndarray] = []
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )

    @kind
    def collect(wave, count, _):
        if wave and count > 0:
            parts.append(np.ctypeslib.as_array(wave, (count,)).astype(np.float32))
        return 0

    library.espeak_SetSynthCallback(collect)
    library.espeak_SetVoiceByName(b"en-us")
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 0, 0, 1, None, None)
    library.espeak_Synchronize()
    library.espeak_Terminate()
    audio = soxr.resample(np.concatenate(parts) / 32768, rate, 16000)
    return torch.from_numpy(audio.astype(np.float32))[None]


def test_speech_is_reconstructed(codec):
    audio = speak("The quick brown fox jumps over the lazy dog, and nobody minds.")
    codes, _ = codec.encode(audio[None])
    used = [len(codes[0, :, k].unique()) for k in range(8)]
    assert min(used[:4]) > 40 and min(used) > 4, used  # fine levels rest where nothing is to add
    padded, _ = codec.pad_to_hop(audio[None], None)
    truth = codec.net.log_magnitudes(codec.net.stft(padded[0]))
    loud = truth.mean(-1) > truth.mean(-1).max() - 4

    def distance(levels: int) -> float:
        made = codec.net.log_magnitudes(codec.net.stft(codec.decode(codes[..., :levels])[0]))
        error = (made[..., :200] - truth[..., :200])[loud]  # up to 5 kHz
        return error.abs().mean().item() * 20 / math.log(10)

    full, coarse = distance(8), distance(1)
    assert full < 7.5, full  # dB; another recording's codes give about 20
    assert full < coarse


def test_griffin_lim_restores_true_spectra():
    net = SpectralNet(SpectralConfig(width=16, encoder_layers=1, decoder_layers=1))
    audio = sweep(100 * HOP, seed=7)
    truth = net.stft(audio)[0].abs()

    def error(iterations: int) -> float:
        made = GriffinLim(net.window, iterations)(truth)
        return ((net.stft(made[None])[0].abs() - truth).norm() / truth.norm()).item()

    assert error(20) < 0.5 * error(0)
    assert error(20) < 0.12


def test_initial_phases_follow_a_steady_tone():
    """For one sinusoid the tracked phases advance by its frequency from window to window."""
    net = SpectralNet(SpectralConfig(width=16, encoder_layers=1, decoder_layers=1))
    frequency = 1012.3
    audio = torch.sin(2 * math.pi * frequency * torch.arange(50 * HOP) / 16000)
    spectra = net.stft(audio[None])[0]
    phases = initial_phases(spectra.abs().numpy(), 160)
    peak = round(frequency / 25)
    step = np.diff(np.unwrap(phases[10:90, peak].astype(np.float64)))
    expected = (2 * math.pi * frequency * 160 / 16000) % (2 * math.pi)
    assert np.allclose(step % (2 * math.pi), expected, atol=0.06)


def test_quantizer_learns_and_uses_its_entries():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(3, 16, 4)
    learner = QuantizerTrainer(quantizer)
    centres = torch.randn(16, 4) * 3
    data = centres[torch.randint(16, (64, 32))] + 0.1 * torch.randn(64, 32, 4)
    learner.start(data.reshape(-1, 4))
    for _ in range(30):
        data.requires_grad_()
        result = learner(data, torch.full((64,), 3))
    quantizer.prepare()
    flat = data.detach().reshape(-1, 4)
    codes = quantizer.encode(flat, 3)
    errors = [(quantizer.decode(codes[:, :k]) - flat).square().mean() for k in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < 0.1 * flat.var() and len(codes[:, 0].unique()) >= 14
    result.latents.sum().backward()
    assert torch.equal(data.grad, torch.ones_like(data))  # straight through


def test_rare_entries_must_be_worth_their_price():
    torch.manual_seed(0)
    data = torch.randn(32, 64, 4)
    entropy, error = [], []
    for price in (0.0, 0.3):
        quantizer = ResidualQuantizer(2, 32, 4)
        learner = QuantizerTrainer(quantizer)
        learner.start(data.reshape(-1, 4))
        learner.price = price
        for _ in range(40):
            learner(data, torch.full((32,), 2))
        quantizer.prepare()
        codes = quantizer.encode(data.reshape(-1, 4), 2)
        error.append((quantizer.decode(codes) - data.reshape(-1, 4)).square().mean())
        entropy.append(sum(learner.entropies()))
    assert entropy[1] < 0.8 * entropy[0]
    assert error[0] < error[1] < 1


@pytest.mark.parametrize(
    "change",
    [{"encoder_layers": 10**9}, {"width": 10**6}, {"n_fft": 10**8}, {"kernel": -7}, {"width": "9"}],
)
def test_a_config_of_other_weights_takes_no_memory(tmp_path, change):
    with safe_open(ASSET, framework="pt") as file:
        config = json.loads(file.metadata()["config"]) | change
        state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    path = tmp_path / "odd.safetensors"
    save_file(state, path, {"config": json.dumps(config)})
    with pytest.raises(UserError, match="not weights of the spectral codec"):
        SpectralCodec.load(path)
