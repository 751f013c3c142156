"""The codecs' own packages and commands, for `codec.py --packages`; run by their environment.

    codec_packages.py weights dac-44khz FILE          random weights in the package's format
    codec_packages.py command dac-44khz FILE IN OUT   the package's command on the wavs of a folder
    codec_packages.py codes dac-44khz FILE IN OUT     OUT/STEM.npy: codes by its model, files whole
    codec_packages.py heard dac-44khz FILE IN OUT     OUT/STEM.npy: codes in what the command wrote

The command of descript-audio-codec is ``python -m dac encode``. That of encodec takes one file at a
time and reads it with torchaudio, which has no reader without another package: its ``main()`` is
called for file after file, with soundfile doing the reading, and finds its weights where it would
have downloaded them to.
"""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

warnings.filterwarnings("ignore")
ENCODEC = {
    "encodec-24khz": ("encodec_24khz-d7cc33bc.th", "6", []),
    "encodec-48khz": ("encodec_48khz-7e698e3e.th", "24", ["--hq"]),
}


def encodec_model(name, file=None):
    import encodec

    make = f"encodec_model_{name.partition('-')[2]}"
    model = getattr(encodec.EncodecModel, make)(pretrained=False).eval()
    model.set_target_bandwidth(float(ENCODEC[name][1]))
    if file is not None:
        model.load_state_dict(torch.load(file, weights_only=True))
    return model


@torch.no_grad()
def weights(name, file):
    torch.manual_seed(0)
    if name == "dac-44khz":
        import dac

        model = dac.DAC(sample_rate=44100).eval()
        for module in model.modules():  # when new, the signal dies out
            if isinstance(module, torch.nn.Conv1d):
                torch.nn.init.kaiming_normal_(module.weight_v, nonlinearity="linear")
                module.weight_g.copy_(module.weight_v.flatten(1).norm(dim=1)[:, None, None])
                torch.nn.init.uniform_(module.bias, -0.05, 0.05)  # else silence has no codes
        model.save(file, package=False)
        return
    model = encodec_model(name)
    rest = model.encoder(0.2 * torch.randn(1, model.channels, 48000 * 8))[0].T
    # random layers give a mean beside which all else drowns when distances are rounded
    model.encoder.model[-1].conv.conv.bias -= rest.mean(0)
    rest = rest - rest.mean(0)
    for layer in model.quantizer.vq.layers:
        book = layer._codebook
        book.embed.copy_(0.5 * rest.std(0) * torch.randn_like(book.embed))
        book.inited.fill_(1)
        rest = rest - book.embed[torch.cdist(rest, book.embed).argmin(1)]
    torch.save(model.state_dict(), file)


def command(name, file, folder, out):
    if name == "dac-44khz":
        line = [sys.executable, "-m", "dac", "encode", folder, "--output", out]
        subprocess.run([*line, "--weights_path", file, "--device", "cpu"], check=True)
        return
    import soundfile
    import torchaudio
    from encodec.__main__ import main

    def load(path):
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(audio.T), rate

    torchaudio.load = load
    cache, bandwidth, flags = Path(file).parent, ENCODEC[name][1], ENCODEC[name][2]
    stored = cache / "hub/checkpoints" / ENCODEC[name][0]
    stored.parent.mkdir(parents=True, exist_ok=True)
    if not stored.exists():
        shutil.copy(file, stored)
    torch.hub.set_dir(str(cache / "hub"))
    for path in wavs(folder):
        target = Path(out) / f"{path.stem}.ecdc"
        sys.argv = ["encodec", "-f", "-b", bandwidth, *flags, str(path), str(target)]
        main()


@torch.no_grad()
def codes(name, file, folder, out):
    import soundfile

    if name == "dac-44khz":
        import dac

        model = dac.DAC.load(file).eval()
    else:
        model = encodec_model(name, file)
    for path in wavs(folder):
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        audio = torch.from_numpy(audio.T)[None]
        if name == "dac-44khz":
            found = model.encode(model.preprocess(audio, rate))[1][0]
        else:
            found = torch.cat([c for c, _ in model.encode(audio)], -1)[0]
        np.save(Path(out) / f"{path.stem}.npy", found.T.numpy())


def heard(name, file, folder, out):
    """`folder` is what the command wrote to."""
    if name != "dac-44khz":  # its files hold the codes of `codes`: nothing is done to the audio
        return
    import dac

    for path in sorted(Path(folder).glob("*.dac")):
        np.save(Path(out) / f"{path.stem}.npy", dac.DACFile.load(path).codes[0].T.numpy())


def wavs(folder):
    return sorted(Path(folder).glob("*.wav"))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    globals()[sys.argv[1]](*sys.argv[2:])
