import json
import socket

import pytest
import torch
import transformers

from rvqlm.codecs import registry
from rvqlm.codecs.registry import load_codec, load_codec_like
from rvqlm.errors import UserError


@pytest.fixture(scope="module")
def dac(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / "someone" / "tiny_dac"
    config = transformers.DacConfig(
        encoder_hidden_size=2, decoder_hidden_size=8, downsampling_ratios=[2, 2], n_codebooks=2,
        codebook_size=8, codebook_dim=2, sampling_rate=8000,
    )  # fmt: skip
    transformers.DacModel(config).save_pretrained(folder)
    return folder


def copy_of(folder, target, drop=()):
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name not in drop:
            (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", registry.CODECS_ENV):
        monkeypatch.delenv(name, raising=False)


def test_spectral_is_embedded():
    codec = load_codec("spectral")
    assert codec.info.name == "spectral" and not codec.training
    few = load_codec("spectral", num_codebooks=2)
    assert few.info.num_codebooks == 2
    with pytest.raises(UserError, match=r"no such file.*train_spectral_codec"):
        load_codec("nowhere/spectral.safetensors")


def test_a_folder_by_path_and_by_hub_name(dac, monkeypatch, no_network):
    by_path = load_codec(dac)
    assert by_path.info.name == str(dac)
    for root in (dac.parent.parent, dac.parent):  # with and without the owner
        monkeypatch.setenv(registry.CODECS_ENV, f"/nowhere:{root}")
        by_name = load_codec("someone/tiny_dac")
        assert by_name.info.name == "someone/tiny_dac"
        assert by_name.info.fingerprint == by_path.info.fingerprint


def test_a_relative_folder_is_remembered_absolutely(dac, monkeypatch):
    monkeypatch.chdir(dac.parent)
    assert load_codec("tiny_dac").info.name == str(dac.resolve())


def test_missing_and_offline(no_network):
    with pytest.raises(UserError) as e:
        load_codec("descript/dac_99khz")
    message = str(e.value)
    for part in ("config.json and model.safetensors", "https://huggingface.co/descript/dac_99khz",
                 "--codec FOLDER", "RVQLM_CODECS=DIR"):  # fmt: skip
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["foo", "/nowhere/at/all", "./x", "a/b/c"])
def test_neither_name_nor_folder(name, no_network):
    with pytest.raises(UserError, match=r"no such folder.*--codec spectral"):
        load_codec(name)


def test_incomplete_folders(dac, tmp_path):
    with pytest.raises(UserError, match=r"no file .*config\.json"):
        load_codec(copy_of(dac, tmp_path / "a", drop=["config.json"]))
    with pytest.raises(UserError, match=r"no file .*model\.safetensors"):
        load_codec(copy_of(dac, tmp_path / "b", drop=["model.safetensors"]))
    with pytest.raises(UserError, match=r"is a file; give the folder"):
        load_codec(dac / "config.json")
    torn = copy_of(dac, tmp_path / "c")
    (torn / "model.safetensors").write_bytes((dac / "model.safetensors").read_bytes()[:500])
    with pytest.raises(UserError, match=r"cannot load"):
        load_codec(torn)
    (copy_of(dac, tmp_path / "d") / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot load"):
        load_codec(tmp_path / "d")


def test_missing_tensors_are_not_made_up(dac, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(dac, tmp_path / "x")
    state = load_file(dac / "model.safetensors")
    state.pop("encoder.conv1.bias")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"incomplete: 1 tensors .*encoder\.conv1\.bias"):
        load_codec(folder)


def test_a_model_that_is_no_codec(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"type 'bert' is no audio codec"):
        load_codec(tmp_path)


def test_load_codec_like_checks_the_weights(dac, tmp_path):
    info = load_codec(dac, num_codebooks=1).info
    assert load_codec_like(info).info == info
    assert load_codec_like(info, copy_of(dac, tmp_path / "copy")).info.num_codebooks == 1
    other = transformers.DacModel.from_pretrained(dac)
    with torch.no_grad():
        other.decoder.conv2.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"codec mismatch.*fingerprint"):
        load_codec_like(info, tmp_path / "other")


def test_bad_device(dac):
    with pytest.raises(UserError, match=r"--device"):
        load_codec(dac, device="quantum")


def test_dtype(dac):
    codec = load_codec(dac, dtype="bfloat16")
    assert codec.dtype == next(codec.parameters()).dtype == torch.bfloat16
    assert codec.info == load_codec(dac).info
    assert load_codec_like(codec.info, dtype="float16").dtype == torch.float16
    with pytest.raises(UserError, match=r"--dtype half: choose float32, bfloat16, float16"):
        load_codec(dac, dtype="half")
    with pytest.raises(UserError, match=r"--dtype bfloat16: codec spectral computes in float32"):
        load_codec("spectral", dtype="bfloat16")


def test_each_name_goes_to_its_backend(monkeypatch, tmp_path):
    """By looks alone, and the plain ones first."""
    from rvqlm.codecs import native_checkpoint, nemo_codec, package_dac, package_encodec, pretrained

    loaders = {
        package_dac: "load_package", package_encodec: "load_package", nemo_codec: "load_nemo",
        native_checkpoint: "load_native", pretrained: "load_pretrained",
    }  # fmt: skip
    for module, function in loaders.items():

        def load(name, num_codebooks, module=module):
            raise UserError(module.__name__.split(".")[-1])

        monkeypatch.setattr(module, function, load)
    for name, backend in {
        "package:dac:a.pth": "package_dac", "package:encodec:a.th": "package_encodec",
        "nvidia/audio-codec-44khz": "nemo_codec", "nvidia/nemo-nano-codec-22khz": "nemo_codec",
        "x/a.nemo": "nemo_codec", "nemo:some": "nemo_codec", "a.pth": "native_checkpoint",
        "compression_state_dict.bin": "native_checkpoint", "b/encodec_24khz-d7cc33bc.th":
        "native_checkpoint", "descript/dac_44khz": "pretrained", "kyutai/mimi": "pretrained",
        "nvidia/something-else": "pretrained", "folder": "pretrained",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=rf"^{backend}$"):
            load_codec(name)
    (tmp_path / "nvidia" / "my-codec").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^pretrained$"):  # a folder of the user's
        load_codec("nvidia/my-codec")
