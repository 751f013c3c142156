"""Small randomly initialised checkpoints, saved to disk and loaded again."""

import pytest
import torch
import transformers
from tiny_codecs import MODELS, encodec, fill_codebooks, mimi, noise

from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.codecs.pretrained import from_model
from rvqlm.codecs.registry import load_codec
from rvqlm.errors import UserError


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    fill_codebooks(MODELS[request.param](), torch.randn(1, 1, 4000)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def codec(folder):
    return load_codec(folder)


def test_shapes_ranges_and_names(codec, folder):
    info = codec.info
    assert info.name == str(folder) and info.channels == 1
    assert info.hop == {"dac": 8, "dac-odd": 15, "mimi": 16}.get(folder.name[:-1], 8)
    for samples in (1, info.hop, info.hop + 1, 10 * info.hop, 777):
        codes, lengths = codec.encode(noise(2, 1, samples))
        T = -(-samples // info.hop)
        assert codes.shape == (2, T, info.num_codebooks) and codes.dtype == torch.int64
        assert lengths.tolist() == [T, T]
        audio = codec.decode(codes)
        assert audio.shape == (2, 1, T * info.hop) and audio.dtype == torch.float32
        assert audio.isfinite().all()
    codes, _ = codec.encode(noise(1, 1, 4000))
    assert int(codes.min()) >= 0 and int(codes.max()) < info.codebook_size
    assert all(codes[..., k].unique().numel() >= 6 for k in range(info.num_codebooks))


def test_equals_the_model_itself(codec, folder):
    """On whole frames the adapter adds nothing and loses nothing."""
    audio = noise(1, 1, 40 * codec.info.hop)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    kind = model.config.model_type
    with torch.no_grad():
        if kind == "encodec":
            expected = model.encode(audio, bandwidth=24.0).audio_codes[0]
            sound = model.decode(expected[None], [None]).audio_values
        else:
            expected = model.encode(audio).audio_codes
            sound = model.decode(audio_codes=expected).audio_values.view(1, 1, -1)
    codes, _ = codec.encode(audio)
    K = codec.info.num_codebooks
    assert codes.equal(expected.transpose(1, 2)[..., :K])
    if expected.shape[1] == K:
        size = sound.shape[2]
        assert torch.allclose(codec.decode(codes)[..., :size], sound, atol=1e-6)


def test_batch_equals_single(codec):
    """Items keep their codes whatever they are batched with, zeros past their end or not."""
    lengths = torch.tensor([800, 333, 1, 340])
    audio = noise(4, 1, 800)
    batch, frames = codec.encode(audio, lengths)
    different = total = 0
    for i, n in enumerate(lengths.tolist()):
        single, _ = codec.encode(audio[i : i + 1, :, :n])
        different += int((batch[i, : frames[i]] != single[0]).sum())
        total += single.numel()
    # rounding may flip a code; 2-6 % differ if the zeros are encoded with them
    assert different <= 0.003 * total


def test_fewer_codebooks_are_the_coarse_ones(codec, folder):
    audio = noise(1, 1, 900)
    all_levels, _ = codec.encode(audio)
    for K in (1, codec.info.num_codebooks - 1):
        few = load_codec(folder, num_codebooks=K)
        assert few.info.num_codebooks == K and few.info.fingerprint == codec.info.fingerprint
        codes, _ = few.encode(audio)
        assert codes.equal(all_levels[..., :K])
        assert few.decode(codes).shape == codec.decode(codes).shape
    with pytest.raises(UserError, match=r"--num-codebooks 99.* codebooks; choose 1 to"):
        load_codec(folder, num_codebooks=99)
    with pytest.raises(UserError, match=r"--num-codebooks 0"):
        load_codec(folder, num_codebooks=0)


def test_repeatable_and_without_gradients(codec):
    audio = noise(1, 1, 500).requires_grad_()
    first = codec.train().encode(audio)[0]
    with torch.autocast("cpu", torch.bfloat16):  # bf16 would change codes
        second = codec.encode(audio)[0]
    assert first.equal(second) and not codec.decode(first).requires_grad


def test_the_vectors_of_codes_add_up_to_the_latents(codec):
    """But for one constant, what the decoder is given of any codes is the sum of their vectors."""
    books = codec.code_vectors()
    K, V = codec.info.num_codebooks, codec.info.codebook_size
    assert books.shape[:2] == (K, V) and books.dtype == torch.float32
    assert books.mean(1).abs().max() < 1e-5 and books.abs().max() > 1e-3
    codes = torch.randint(V, (1, 30, K), generator=torch.Generator().manual_seed(0))
    sums = sum(books[k][codes[0, :, k]] for k in range(K))
    with torch.no_grad():
        latents = codec._dequantize(codes.mT)[0].mT
    rest = latents - sums
    torch.testing.assert_close(rest, rest[:1].expand_as(rest), atol=1e-5, rtol=1e-5)


def test_fingerprint_follows_the_weights(codec, folder, tmp_path):
    assert load_codec(folder).info == codec.info
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.startswith("decoder")).mul_(1.001)
    model.save_pretrained(tmp_path)
    assert load_codec(tmp_path).info.fingerprint != codec.info.fingerprint


def test_usual_number_of_codebooks(tmp_path):
    for model in (mimi(12), encodec(bandwidths=(48.0,))):
        codec = from_model(model, "many")
        assert codec.available_codebooks == 12 and codec.info.num_codebooks == 8
        assert from_model(model, "m", 12).info.num_codebooks == 12


def test_other_types_of_numbers(codec, folder):
    """bf16 sounds as float32 does, changes codes a little, and goes back without a trace."""
    other, audio = load_codec(folder), noise(1, 1, 4000)
    codes, _ = other.encode(audio)  # what a first call keeps must not outlive the change
    assert codes.equal(codec.encode(audio)[0])
    assert other.set_dtype(torch.bfloat16) is other
    assert next(other.model.parameters()).dtype == other.dtype == torch.bfloat16
    sound, rough = codec.decode(codes), other.decode(codes)
    assert rough.dtype == torch.float32 and not rough.equal(sound)
    assert float((rough - sound).norm() / sound.norm()) < 0.05
    assert not other.encode(audio)[0].equal(codes)
    long = decode_long(other, codes[0], 0.1)
    assert long.dtype == torch.float32 and torch.allclose(long, rough[0], atol=0.05)
    assert encode_whole(other, audio[0], 0.1).codes.shape == codes[0].shape
    assert other.info == codec.info
    # positions of a transformer are those of float32, however late
    rotary = [b for n, b in other.named_buffers() if n.endswith("inv_freq")]
    assert len(rotary) == 4 * ("mimi" in folder.name)
    assert all(b.dtype == torch.float32 for b in rotary)
    exact = load_codec(folder)
    assert exact.decode(codes).equal(sound)
    assert exact.set_dtype(torch.float64).decode(codes).allclose(sound, atol=1e-5)


class Foreign(torch.nn.Module):
    """A tokenizer class without an adapter of its own."""

    def __init__(self, frames=8, **config):
        super().__init__()
        config = {"model_type": "foreign", "num_quantizers": 2, "hop_length": 4, **config}
        self.config = transformers.PretrainedConfig(
            sampling_rate=100, codebook_size=10, **{k: v for k, v in config.items() if v}
        )
        self.config.model_type = "foreign"
        self.frames = frames

    def encode(self, audio):
        codes = torch.zeros(len(audio), 2, audio.shape[2] // 4, dtype=torch.int64)
        return transformers.utils.ModelOutput(audio_codes=codes[..., : self.frames])

    def decode(self, audio_codes):
        audio = torch.zeros(len(audio_codes), 1, audio_codes.shape[2] * 4)
        return transformers.utils.ModelOutput(audio_values=audio)


def test_other_classes_work_if_they_fit_and_say_why_not():
    codec = from_model(Foreign(), "x")
    assert codec.encode(torch.zeros(1, 1, 30))[0].shape == (1, 8, 2)
    with pytest.raises(UserError, match=r"codec x: .*'foreign' models have another interface"):
        from_model(Foreign(frames=7), "x")
    with pytest.raises(UserError, match=r"configuration has no hop_length"):
        from_model(Foreign(hop_length=None), "x")
