"""The codecs' own packages: what is said without them. With them: ``tools/test.sh --codecs``."""

import sys

import pytest
import torch
from native_files import dac_file, dac_model, encodec_model, encodec_state

from rvqlm.codecs.registry import load_codec
from rvqlm.errors import UserError


@pytest.mark.parametrize(
    "module, name, hint",
    [
        (
            "dac",
            "package:dac:w.pth",
            r"descript-audio-codec.*rvqlm\[dac\]', or give --codec w\.pth",
        ),
        ("encodec", "package:encodec:w.th", r"encodec.*rvqlm\[encodec\]', or give --codec w\.th"),
        ("nemo", "nvidia/audio-codec-44khz", r"nemo_toolkit, .*rvqlm\[nemo\]"),
        ("nemo", "some.nemo", r"nemo_toolkit, .*rvqlm\[nemo\]"),
        ("nemo", "nemo:mel_codec_44khz_medium", r"nemo_toolkit, .*rvqlm\[nemo\]"),
    ],
)
def test_missing_packages(module, name, hint, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=hint) as e:
        load_codec(name)
    assert "\n" not in str(e.value) and str(e.value).startswith(f"codec {name} needs the package")


def test_a_package_that_breaks_at_import(monkeypatch, tmp_path):
    (tmp_path / "dac.py").write_text("raise OSError('libtorchaudio.so: undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dac", raising=False)
    with pytest.raises(UserError, match=r"importing it failed \(libtorchaudio\.so: undefined"):
        load_codec("package:dac:w.pth")


def test_the_other_package_s_file(monkeypatch, tmp_path):
    dac = dac_file(dac_model(), tmp_path / "w.pth")
    torch.save(encodec_state(encodec_model()), tmp_path / "w.th")
    for module in ("dac", "encodec"):
        monkeypatch.setitem(sys.modules, module, type(sys)(module))
    with pytest.raises(UserError, match=r"w\.pth holds the weights of a DAC"):
        load_codec(f"package:encodec:{dac}")
    with pytest.raises(UserError, match=r"w\.th holds the weights of an EnCodec"):
        load_codec(f"package:dac:{tmp_path / 'w.th'}")
    with pytest.raises(UserError, match=r"codec nowhere\.pth: no such file"):
        load_codec("package:dac:nowhere.pth")
    with pytest.raises(UserError, match=r"codec package:other:x: no such folder"):
        load_codec("package:other:x")
