"""What `rvqlm codecs` says is compared with the codecs and classes themselves."""

import json

import huggingface_hub.constants
import pytest
import torch
import transformers
from native_files import dac_file, dac_model, encodec_model, encodec_state

from rvqlm.bin import codec_cards
from rvqlm.codecs.cards import CODECS_ENV
from rvqlm.codecs.native import SUFFIXES
from rvqlm.codecs.pretrained import from_model, transformers_types
from rvqlm.codecs.registry import BACKENDS, CARDS, card_of, load_codec
from rvqlm.errors import UserError

KBPS = {  # as the projects state them, or K log2(V) frames per second by hand
    "spectral": 4.0, "descript/dac_44khz": 7.752, "descript/dac_24khz": 24.0,
    "descript/dac_16khz": 6.0, "facebook/encodec_24khz": 6.0, "facebook/encodec_32khz": 2.2,
    "facebook/encodec_48khz": 24.0 / 0.99, "kyutai/mimi": 1.1, "nvidia/audio-codec-44khz": 6.867,
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(CODECS_ENV, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def geometry(info):
    return info.sampling_rate, info.hop, info.channels, info.segment


def test_rates():
    rates = {card.name: card.info.bitrate / 1000 for card in CARDS}
    assert {name: rates[name] for name in KBPS} == pytest.approx(KBPS, rel=1e-4)
    assert len(rates) == len(CARDS)  # no name twice


def test_spectral_card_is_the_codec():
    card, codec = card_of("spectral"), load_codec("spectral")
    info = codec.info
    assert card.look_ahead == codec.look_ahead
    assert card.info == type(info).from_dict({**info.to_dict(), "fingerprint": ""})


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("encodec_24khz", {"levels": 32}),
        (
            "encodec_48khz",
            {
                "rate": 48000, "levels": 16, "audio_channels": 2, "use_causal_conv": False,
                "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01,
                "norm_type": "time_group_norm",
            },
        ),
        (
            "encodec_32khz",
            {"rate": 32000, "ratios": (8, 5, 4, 4), "use_causal_conv": False,
             "use_conv_shortcut": False},
        ),
    ],
)  # fmt: skip
def test_encodec_cards_are_what_native_files_load_as(name, kwargs, tmp_path):
    torch.save(encodec_state(encodec_model(**kwargs)), tmp_path / "x.th")
    codec, card = load_codec(tmp_path / "x.th"), card_of(name)
    assert geometry(card.info) == geometry(codec.info)
    assert card.look_ahead == codec.look_ahead
    assert (card.num_codebooks, card.available) == (
        codec.info.num_codebooks,
        codec.available_codebooks,
    )


def test_cards_are_the_defaults_of_the_classes():
    encodec, mimi = transformers.EncodecConfig(), transformers.MimiConfig()
    card = card_of("encodec_24khz")
    assert (card.available, card.codebook_size) == (encodec.num_quantizers, encodec.codebook_size)
    card = card_of("kyutai/mimi")
    assert (card.available, card.codebook_size) == (mimi.num_quantizers, mimi.codebook_size)
    assert (card.sampling_rate, card.sampling_rate / card.hop) == (mimi.sampling_rate, 12.5)


@pytest.mark.parametrize(
    "name,make,shape",
    [
        ("dac_44khz", transformers.DacModel, {"downsampling_ratios": [2, 4, 8, 8]}),
        ("dac_24khz", transformers.DacModel, {"downsampling_ratios": [2, 4, 5, 8]}),
        ("dac_16khz", transformers.DacModel, {"downsampling_ratios": [2, 4, 5, 8]}),
        ("kyutai/mimi", transformers.MimiModel, {}),
    ],
)
def test_look_ahead_is_that_of_the_published_strides(name, make, shape):
    small = {"codebook_size": 16, "num_filters": 2, "hidden_size": 16, "num_hidden_layers": 1}
    small |= {"encoder_hidden_size": 4, "decoder_hidden_size": 64, "codebook_dim": 4}
    small |= {"vector_quantization_hidden_dimension": 8, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 2, "upsample_groups": 16, "intermediate_size": 16}
    config = make.config_class(**{**small, **shape})
    codec = from_model(make(config), "x")
    assert codec.info.hop == card_of(name).hop and codec.look_ahead == card_of(name).look_ahead


def test_a_native_file_is_one_that_some_backend_takes():
    for card in CARDS:
        names = {backend.name for backend in BACKENDS if card in backend.cards}
        assert not card.native or card.native.endswith((*SUFFIXES, ".nemo"))
        assert bool(card.native) == bool({"native", "nemo"} & names)


def test_weights_are_found_where_load_codec_finds_them(tmp_path, monkeypatch):
    dac, mimi = card_of("dac_16khz"), card_of("kyutai/mimi")
    assert dac.weights_here() == mimi.weights_here() == []
    root = tmp_path / "codecs"
    dac_model().save_pretrained(root / "dac_16khz")
    dac_file(dac_model(), root / dac.native)
    monkeypatch.setenv(CODECS_ENV, str(root))
    assert dac.weights_here() == [str(root / "dac_16khz"), str(root / dac.native)]
    cached = tmp_path / "hub" / "models--kyutai--mimi"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    assert mimi.weights_here() == [str(cached / "snapshots" / ("0" * 40))]


def bare(config):
    model = torch.nn.Module()
    model.config = config
    return model


def test_every_type_that_transformers_maps_is_listed_with_the_truth():
    from transformers.models.auto import modeling_auto as auto

    kinds = transformers_types()
    assert set(auto.MODEL_FOR_AUDIO_TOKENIZATION_NAMES) <= set(kinds)
    assert not any("untried" in what for what in kinds.values())
    for kind, what in kinds.items():
        assert what.startswith(("works", "no: "))
        if what.startswith("no: "):
            config = transformers.AutoConfig.for_model(kind)
            with pytest.raises(UserError, match=f"codec x: its '{kind}' configuration has no"):
                from_model(bare(config), "x")


def test_xcodec_works_without_an_adapter_of_its_own(tmp_path):
    config = transformers.XcodecConfig(
        acoustic_model_config={
            "model_type": "dac", "encoder_hidden_size": 4, "downsampling_ratios": [8, 5, 4, 2],
            "upsampling_ratios": [8, 5, 4, 2], "decoder_hidden_size": 64, "hidden_size": 32,
        },
        semantic_model_config={
            "model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.XcodecModel(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("codebook.embed"):  # zero when new
            buffer.copy_(torch.randn(buffer.shape) * 0.1)
    model.save_pretrained(tmp_path / "xcodec")
    codec = load_codec(tmp_path / "xcodec")
    assert geometry(codec.info) == (16000, 320, 1, None) and codec.info.num_codebooks == 8
    audio = torch.randn(1, 1, 320 * 20) * 0.3
    with torch.no_grad():
        codes = model.encode(audio).audio_codes
        sound = model.decode(codes).audio_values
    ours, _ = codec.encode(audio)
    assert ours.equal(codes.transpose(1, 2)) and codes.unique().numel() > 8
    assert torch.allclose(codec.decode(ours), sound, atol=1e-6)


def said(capsys, *argv):
    status = codec_cards.main(list(argv))
    out = capsys.readouterr()
    return status, out.out, out.err


def test_the_command(capsys, tmp_path):
    status, out, _ = said(capsys)
    assert status == 0 and all(name in out for name in KBPS)
    assert "not installed: pip install 'rvqlm[" in out or "dac" in out
    status, out, _ = said(capsys, "encodec_48khz")
    assert status == 0
    for part in ("facebook/encodec_48khz", "2 channels", "encodec_48khz-7e698e3e.th",
                 "150 frames, one every 47520 samples", "found here  no"):  # fmt: skip
        assert part in out
    path = dac_file(dac_model(), tmp_path / "weights.pth")
    info = load_codec(path).info
    status, out, _ = said(capsys, str(path))
    assert status == 0 and info.fingerprint in out and "3 x 32" in out
    status, out, _ = said(capsys, str(path), "--json")
    assert json.loads(out)["fingerprint"] == info.fingerprint
    status, out, _ = said(capsys, "--json")
    assert [c["name"] for c in json.loads(out)["codecs"]] == [card.name for card in CARDS]
    status, _, err = said(capsys, "nonsense")
    assert status == 2 and err.startswith("rvqlm codecs: error: codec nonsense: no such folder")
