"""Predicted opinions: networks that were trained on how people rated recordings."""

from __future__ import annotations

import numpy as np

from rvqlm.judging.judge import Clip, Column, Judge, Nothing, NotRun, Options, Score
from rvqlm.judging.weights import digest, given_path, onnx_session, packaged
from rvqlm.metrics.mel import mel_filters, spectra

RATE = 16000
_WINDOW = 144_160  # samples, 9.01 s
_SHORTEST = 0.1  # seconds
_CALIBRATION = {  # of the raw outputs to ratings, as in the DNS challenge; highest power first
    "signal": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}


class DnsmosJudge(Judge):
    """DNSMOS P.835 and P.808 (Reddy et al., 2021 and 2022, arXiv:2010.15258, arXiv:2110.01763), by
    the weights of the package speechmos: ratings of speech from 1 to 5.

    Windows of 9.01 s every second; a shorter recording is repeated until it fills one.
    """

    name = "dnsmos"
    columns = (
        Column("overall", "higher", "1 to 5, P.835 overall"),
        Column("signal", "higher", "1 to 5, P.835 speech"),
        Column("background", "higher", "1 to 5, P.835 background"),
        Column("p808", "higher", "1 to 5, P.808"),
    )

    def __init__(self, options: Options):
        self._graphs = []
        folder = "speechmos/dnsmos_models"
        if self.name in options.weights:
            raise NotRun("--weights dnsmos does nothing: pip install --no-deps speechmos")
        for file in ("sig_bak_ovr.onnx", "model_v8.onnx"):
            data, self.model = packaged(options, self.name, "speechmos", f"{folder}/{file}")
            self._graphs.append(onnx_session(data, self.model))

    def score(self, clip: Clip) -> dict[str, Score]:
        audio = np.clip(clip.sound.at(RATE), -1, 1)
        if len(audio) < _SHORTEST * RATE:
            raise Nothing(f"less than {_SHORTEST:g} s")
        while len(audio) < _WINDOW:
            audio = np.concatenate([audio, audio])
        windows = [audio[i : i + _WINDOW] for i in range(0, len(audio) - _WINDOW + 1, RATE)]
        raw = np.mean([self._rate(window) for window in windows], axis=0)
        names = ("signal", "background", "overall", "p808")
        return {name: Score(float(value)) for name, value in zip(names, raw)}

    def _rate(self, window: np.ndarray) -> np.ndarray:
        """(4,) speech, background, overall, P.808 of one window."""
        (parts,), (p808,) = (
            graph.run(None, {"input_1": given[None]})[0]
            for graph, given in zip(self._graphs, (window, _p808_input(window[:-160])))
        )
        rated = [np.polyval(c, x) for c, x in zip(_CALIBRATION.values(), parts)]
        return np.array([*rated, p808[0]], np.float64)


def _p808_input(audio: np.ndarray) -> np.ndarray:
    """(900, 120) mel bands in dB below the loudest, which a range of 80 dB is kept of, in units of
    40 dB around -40."""
    power = spectra(audio.astype(np.float64), 321, 160) ** 2 @ mel_filters(RATE, 321, 120).T
    level = 10 * np.log10(np.maximum(power, 1e-10))
    level -= 10 * np.log10(max(power.max(), 1e-10))
    return ((np.maximum(level, -80.0) + 40) / 40).astype(np.float32)


class UtmosJudge(Judge):
    """UTMOS (Saeki et al., 2022, arXiv:2204.02152), or any network of its kind, as an ONNX graph
    with one input, (1, S) samples at 16 kHz, and one rating as output."""

    name = "utmos"
    columns = (Column("mos", "higher", "1 to 5, naturalness of speech"),)

    def __init__(self, options: Options):
        path = given_path(options, self.name, "an ONNX file of UTMOS: (1, S) at 16 kHz -> rating")
        data = path.read_bytes() if path.is_file() else b""
        self._graph = onnx_session(data, str(path))
        inputs = self._graph.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 2:
            shapes = ", ".join(str(i.shape) for i in inputs)
            raise NotRun(f"{path} takes {shapes}: one input (1, S) is wanted, samples at 16 kHz")
        self._input = inputs[0].name
        self.model = f"{path.stem}-{digest(data)}"

    def score(self, clip: Clip) -> dict[str, Score]:
        audio = clip.sound.at(RATE)
        if len(audio) < _SHORTEST * RATE:
            raise Nothing(f"less than {_SHORTEST:g} s")
        found = np.asarray(self._graph.run(None, {self._input: audio[None]})[0], np.float64)
        return {"mos": Score(float(found.mean()))}
