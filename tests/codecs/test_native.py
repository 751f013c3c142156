"""Native weight files, written from small random models, give those models' codes and audio."""

import hashlib
import zipfile

import pytest
import torch
from native_files import (
    audiocraft_settings,
    dac_file,
    dac_model,
    dac_state,
    encodec_model,
    encodec_state,
)

from rvqlm.codecs.cards import CODECS_ENV, download_folders
from rvqlm.codecs.chunking import encode_whole
from rvqlm.codecs.native_checkpoint import fold_weight_norm
from rvqlm.codecs.pretrained import from_model
from rvqlm.codecs.registry import load_codec
from rvqlm.errors import UserError

STEREO = {
    "audio_channels": 2, "use_causal_conv": False, "normalize": True, "chunk_length_s": 1.0,
    "overlap": 0.01, "norm_type": "time_group_norm",
}  # fmt: skip
MUSICGEN = {"use_causal_conv": False, "use_conv_shortcut": False}


def noise(channels, samples):
    return torch.randn(1, channels, samples, generator=torch.Generator().manual_seed(1)) * 0.3


def same(loaded, expected, samples=4000):
    """Codes and audio of a loaded codec and of the model its file was written from."""
    assert loaded.info.fingerprint == expected.info.fingerprint
    fields = ("sampling_rate", "hop", "num_codebooks", "codebook_size", "channels", "segment")
    for name in fields:
        assert getattr(loaded.info, name) == getattr(expected.info, name), name
    audio = noise(loaded.info.channels, samples)
    codes, ours = expected.encode(audio)[0], loaded.encode(audio)[0]
    assert ours.equal(codes) and codes.unique().numel() > 8
    assert loaded.decode(ours).equal(expected.decode(codes))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "ratios, rate", [((2, 4), 8000), ((2, 4, 5, 8), 16000), ((2, 4, 8, 8), 44100)]
)
@pytest.mark.parametrize("metadata", [True, False])
def test_dac(tmp_path, ratios, rate, metadata):
    if rate == 8000 and not metadata:
        rate = 24000
    model = dac_model(ratios, rate)
    path = dac_file(model, tmp_path / f"weights_{rate // 1000}khz_8kbps_0.0.1.pth", metadata)
    loaded = load_codec(path)
    assert loaded.info.name == str(path)
    same(loaded, from_model(model, "x"))


def test_dac_whose_decoder_has_its_rates_in_another_order(tmp_path):
    model = dac_model((2, 4))
    state = dac_state(model)
    path = dac_file(model, tmp_path / "w.pth", state=state)
    other = dict(state)
    # strides 2, 4 in the decoder too, not 4, 2
    channels = [tuple(state[f"decoder.model.{i}.block.1.weight_v"].shape) for i in (1, 2)]
    assert channels == [(16, 8, 8), (8, 4, 4)]
    for i, kernel in ((1, 4), (2, 8)):
        v = torch.randn(*channels[i - 1][:2], kernel)
        other[f"decoder.model.{i}.block.1.weight_v"] = v
    torch.save({"state_dict": other, "metadata": {"kwargs": {"sample_rate": 8000}}}, path)
    codec = load_codec(path)
    codes, _ = codec.encode(noise(1, 80))
    assert codec.info.hop == 8 and codec.decode(codes).shape == (1, 1, 80)
    other["decoder.model.2.block.1.weight_v"] = torch.randn(*channels[1][:2], 6)
    torch.save({"state_dict": other, "metadata": {"kwargs": {"sample_rate": 8000}}}, path)
    with pytest.raises(UserError, match=r"strides \[2, 4\].*\[2, 3\].*different lengths"):
        load_codec(path)


def test_dac_with_weight_norm_by_its_new_names(tmp_path):
    model = dac_model()
    state = {
        k.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): v
        for k, v in dac_state(model).items()
    }
    assert sum("original1" in k for k in state) > 20
    path = dac_file(model, tmp_path / "w.pth", state=state)
    same(load_codec(path), from_model(model, "x"))


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("encodec_24khz-d7cc33bc.th", {}),
        ("encodec_48khz-7e698e3e.th", {"rate": 48000, **STEREO}),
        ("musicgen.bin", {"ratios": (8, 5, 4, 4), "rate": 32000, **MUSICGEN}),
    ],
)
def test_encodec_from_a_bare_state_dict(tmp_path, name, kwargs):
    model = encodec_model(**kwargs)
    torch.save(encodec_state(model), tmp_path / name)
    same(load_codec(tmp_path / name), from_model(model, "x"), samples=50000)


@pytest.mark.parametrize("kwargs", [MUSICGEN, {"pad_mode": "constant", "use_conv_shortcut": False}])
def test_encodec_of_audiocraft(tmp_path, kwargs):
    """Everything from the file's own settings: rate, ratios, causality and padding of no published
    model."""
    model = encodec_model(ratios=(5, 4, 2), rate=16000, **kwargs)
    path = tmp_path / "compression_state_dict.bin"
    content = {
        "best_state": encodec_state(model), "xp.cfg": audiocraft_settings(model.config),
        "version": "1.3.0", "exported": True,
    }  # fmt: skip
    torch.save(content, path)
    codec = load_codec(path)
    same(codec, from_model(model, "x"))
    for wrong, message in (
        ("renormalize: true", r"trained with encodec\.renormalize = True"),
        ("activation: Snake", r"trained with seanet\.activation = 'Snake'"),
        ("sample_rate: ${sample_rate}", r"circle"),
    ):
        key = wrong.split(":")[0]
        lines = [
            " " * (len(line) - len(line.lstrip())) + wrong
            if line.strip().startswith(f"{key}:")
            else line
            for line in content["xp.cfg"].splitlines()
        ]
        torch.save({**content, "xp.cfg": "\n".join(lines)}, path)
        with pytest.raises(UserError, match=message):
            load_codec(path)


def test_all_published_level_counts_survive(tmp_path):
    for levels in (1, 3, 8, 32):
        model = encodec_model(levels=levels)
        assert model.config.num_quantizers == levels
        torch.save(encodec_state(model), tmp_path / "a.th")
        codec = load_codec(tmp_path / "a.th", num_codebooks=levels)
        assert codec.info.num_codebooks == codec.available_codebooks == levels


def test_where_files_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    model = dac_model()
    name = "weights_16khz_8kbps_0.0.5.pth"
    with pytest.raises(UserError, match=rf"codec {name}: no such file.*RVQLM_CODECS"):
        load_codec(name)
    dac_file(model, tmp_path / name)
    monkeypatch.setenv(CODECS_ENV, str(tmp_path))
    by_name = load_codec(name)
    assert by_name.info.name == name  # the same on every machine
    monkeypatch.chdir(tmp_path)
    assert load_codec(name).info.name == str(tmp_path / name)
    monkeypatch.delenv(CODECS_ENV)
    monkeypatch.chdir("/")
    for folder in download_folders():
        assert folder.is_relative_to(tmp_path)
        folder.mkdir(parents=True)
        (tmp_path / name).rename(folder / name)
        assert load_codec(name).info.fingerprint == by_name.info.fingerprint
        (folder / name).rename(tmp_path / name)


def test_files_that_are_no_native_weights(tmp_path):
    def refused(content, match, name="w.pth"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=match) as e:
            load_codec(path)
        assert "\n" not in str(e.value) and str(path) in str(e.value)

    refused(b"", r"not a file of torch\.save")
    refused(b"garbage" * 100, r"not loaded|not a file of torch\.save")
    whole = dac_file(dac_model(), tmp_path / "w.pth").read_bytes()
    refused(whole[: len(whole) // 2], r"not a file of torch\.save")
    refused([1, 2], r"holds a list, not weights")
    refused(
        {"pretrained": "facebook/encodec_32khz"}, r"give --codec facebook/encodec_32khz", "c.bin"
    )
    refused({"a.weight": torch.zeros(2)}, r"no codec by its tensors \(first: a\.weight\)")
    refused({"state_dict": torch.zeros(2)}, r"its weights are a Tensor")
    refused(dac_model().state_dict(), r"transformers' format; give the folder")
    refused({"best_state": {}, "xp.cfg": torch.nn.Linear(1, 1)}, r"objects other than weights")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("DAC/.data/extern_modules", "numpy")
    refused((tmp_path / "w.pth").read_bytes(), r"torch\.package.*weights\.pth")


def test_incomplete_and_foreign_weights(tmp_path):
    model = dac_model()

    def refused(state, match, name="w.pth"):
        with pytest.raises(UserError, match=match):
            load_codec(dac_file(model, tmp_path / name, state=state))

    state = dac_state(model)
    for name in ("encoder.block.1.block.0.block.1.weight_g", "decoder.model.3.alpha"):
        refused({k: v for k, v in state.items() if k != name}, r"1 of its tensors are missing")
    refused({**state, "extra.weight": torch.zeros(1)}, r"unknown, extra\.weight first")
    bias = {"decoder.model.0.bias": torch.zeros(3)}
    refused({**state, **bias}, r"another shape, decoder\.conv1\.bias is \(3,\), not \(16,\)")
    book = {"quantizer.quantizers.1.codebook.weight": torch.zeros(32, 5)}
    refused({**state, **book}, r"codebooks of unequal shapes")
    torch.save({"state_dict": state}, tmp_path / "nameless.pth")
    with pytest.raises(UserError, match=r"nothing about its sampling rate.*16khz, 24khz or 44khz"):
        load_codec(tmp_path / "nameless.pth")
    encodec = encodec_state(encodec_model())
    torch.save({k: v for k, v in encodec.items() if ".lstm." not in k}, tmp_path / "e.th")
    with pytest.raises(UserError, match=r"without an LSTM"):
        load_codec(tmp_path / "e.th")
    torch.save(encodec_state(encodec_model(ratios=(5, 4, 2))), tmp_path / "e.th")
    with pytest.raises(UserError, match=r"1 channels with 40 samples per frame is none"):
        load_codec(tmp_path / "e.th")


def test_weight_norm_is_folded_and_axis_follows_g():
    v = torch.randn(3, 4, 5)
    g = torch.rand(1, 4, 1) + 1
    folded = fold_weight_norm({"a.weight_g": g, "a.weight_v": v, "a.bias": g})
    assert set(folded) == {"a.weight", "a.bias"}
    norm = v.double().square().sum((0, 2), keepdim=True).sqrt()
    assert torch.allclose(folded["a.weight"].double(), g * v / norm, atol=1e-6)


@pytest.mark.parametrize(
    "shape, known",
    [
        ((64, 1, 7), "7b4ff8dd1c51"),
        ((96, 40, 7), "aec52d4aa101"),
        ((50, 33, 16), "5377a079071f"),
        ((8, 300, 1), "13d28406aa03"),
        ((5, 3, 1), "56fc4f5851c9"),
    ],
)
def test_weight_norm_is_folded_alike_on_every_machine(shape, known):
    """A native file's fingerprint must not depend on the processor that reads it."""
    size = shape[0] * shape[1] * shape[2]
    v = ((torch.arange(size) * 7919) % 2003 - 1001).reshape(shape) / 7777
    g = (torch.arange(shape[0]) % 17 + 1).reshape(-1, 1, 1) / 7
    w = fold_weight_norm({"weight_g": g, "weight_v": v})["weight"]
    assert hashlib.sha256(w.numpy().tobytes()).hexdigest()[:12] == known
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert w.equal(torch._weight_norm(v, g, 0))


def test_a_native_codec_is_chunked_like_any_other(tmp_path):
    codec = load_codec(dac_file(dac_model(), tmp_path / "w.pth"))
    audio = noise(1, 4000)
    assert encode_whole(codec, audio[0], 0.1).codes.equal(codec.encode(audio)[0][0])


def test_dtype(tmp_path):
    path = dac_file(dac_model(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"--dtype int8: choose float32, bfloat16, float16"):
        load_codec(path, dtype="int8")
    with pytest.raises(UserError, match=r"--dtype bfloat16.*float32 only"):
        load_codec("spectral", dtype="bfloat16")


@pytest.mark.parametrize("data", [b"", b"\x80\x02.", b"PK\x03\x04 cut short", b"not weights"])
def test_damaged_weight_files_are_one_line(tmp_path, data):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_codec(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
