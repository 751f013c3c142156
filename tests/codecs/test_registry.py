import dataclasses
import importlib
import json
import pkgutil
import re
import socket
from pathlib import Path

import pytest
import torch
import transformers

import rvqlm.codecs
from rvqlm.codecs.base import Backend, Codec
from rvqlm.codecs.cards import CODECS_ENV
from rvqlm.codecs.registry import BACKENDS, CARDS, backend_of, load_codec, load_codec_like
from rvqlm.codecs.transformers_codec import TransformersCodec
from rvqlm.errors import UserError
from rvqlm.exchange.codec import load_codec_for
from rvqlm.exchange.items import TokenSource


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
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", CODECS_ENV):
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
        monkeypatch.setenv(CODECS_ENV, f"/nowhere:{root}")
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
    for name, backend in {
        "package:dac:a.pth": "dac", "package:encodec:a.th": "encodec",
        "nvidia/audio-codec-44khz": "nemo", "nvidia/nemo-nano-codec-22khz": "nemo",
        "x/a.nemo": "nemo", "nemo:some": "nemo", "a.pth": "native",
        "compression_state_dict.bin": "native", "b/encodec_24khz-d7cc33bc.th": "native",
        "spectral": "rvqlm", "a/b.safetensors": "rvqlm",
        "descript/dac_44khz": "transformers", "kyutai/mimi": "transformers",
        "nvidia/something-else": "transformers", "folder": "transformers",
    }.items():  # fmt: skip
        assert backend_of(name).name == backend, name
    (tmp_path / "nvidia" / "my-codec").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert backend_of("nvidia/my-codec").name == "transformers"  # a folder of the user's


def test_no_backend_is_forgotten():
    """What a file of the folder adds is in the table, and what it needs can be installed."""
    extras = re.findall(r'"(\w+)": \[', (Path(__file__).parents[2] / "setup.py").read_text())
    made = {cls for backend in BACKENDS for cls in backend.classes} | {TransformersCodec}
    for module in pkgutil.iter_modules(rvqlm.codecs.__path__, "rvqlm.codecs."):
        for what in vars(importlib.import_module(module.name)).values():
            if isinstance(what, Backend):
                assert what in BACKENDS, f"{module.name}: no row of registry.BACKENDS for it"
            elif isinstance(what, type) and issubclass(what, Codec) and what is not Codec:
                assert what in made, (
                    f"{module.name}: no row of registry.BACKENDS has {what.__name__} in its classes"
                )
    for card in CARDS:
        assert card in backend_of(card.name).cards, f"{card.name}: goes to another backend"
    for backend in BACKENDS:
        assert backend.extra in ("", *extras), f"{backend.name}: setup.py has no such extra"
    for field in ("name", "give"):
        assert len({getattr(backend, field) for backend in BACKENDS}) == len(BACKENDS)


def test_a_name_out_of_a_file_is_not_fetched(dac, monkeypatch, no_network):
    """Tokens of somebody else name their codec: the hub hears of it when a user says so."""
    calls = []
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: calls.append(a) or 1 / 0)
    info = load_codec(dac).info
    named = dataclasses.replace(info, name="nobody/nothing")
    source = TokenSource(".npq files", "here", iter([]), named)
    unknown = dataclasses.replace(named, fingerprint="unknown:nobody/nothing")
    for load in (
        lambda: load_codec_like(named),
        lambda: load_codec_for(source),
        lambda: load_codec_for(dataclasses.replace(source, info=unknown)),
    ):
        with pytest.raises(
            UserError, match=r"^codec nobody/nothing: .*; give --codec nobody/nothi"
        ):
            load()
    assert not calls
    with pytest.raises(UserError, match=r"cannot load nobody/nothing|network"):
        load_codec_like(named, "nobody/nothing")
    assert len(calls) == 1
    # what is on this machine needs no word
    monkeypatch.setenv(CODECS_ENV, str(dac.parents[1]))
    here = dataclasses.replace(info, name="someone/tiny_dac")
    assert load_codec_like(here).info.fingerprint == info.fingerprint


def test_a_nemo_file_out_of_a_file_is_not_loaded(tmp_path, monkeypatch):
    """Its configuration names the classes that are called."""
    file = tmp_path / "x.nemo"
    file.write_bytes(b"")
    monkeypatch.setattr(Backend, "require", lambda self, name, **_: None)
    info = dataclasses.replace(load_codec("spectral").info, name=str(file))
    with pytest.raises(UserError, match="which code is run to load it, and its name was read"):
        load_codec_like(info)
