"""Judges that need no network: what is wrong with a signal, and how far a reconstruction is from
its original."""

from __future__ import annotations

import importlib.metadata
import math

import numpy as np

from rvqlm.audio.loudness import Meter
from rvqlm.judging.judge import Clip, Column, Judge, Nothing, NotRun, Options, Score
from rvqlm.metrics.audio_metrics import log_spectral_distance, silence_ratio
from rvqlm.metrics.mel import mel_distance
from rvqlm.metrics.signal_faults import clicks, clipping_ratio, onset_burst, si_sdr
from rvqlm.version import __version__

_MOST_DB = 100.0  # of a ratio: equal signals have an infinite one
_SPEECH_RATE = 16000
_LOOP_BANDS, _LOOP_LIKE, _LOOP_SECONDS = 40, 0.98, 0.4


class SignalJudge(Judge):
    """What a signal is like whatever it says."""

    name = "signal"
    columns = (
        Column("loudness", "as recorded", "LUFS, integrated (ITU-R BS.1770-4)"),
        Column("silence", "as recorded", "share of the time below -50 dBFS", percent=True),
        Column("clipping", "lower", "share of samples at the end of the scale", percent=True),
        Column("clicks", "lower", "clicks in a minute"),
        Column("onset", "as recorded", "dB of the first 60 ms over the loud parts of the rest"),
        Column("loops", "as recorded", "share of the time that repeats a stretch", percent=True),
    )

    def __init__(self, options: Options):
        self.model = f"rvqlm-{__version__}"

    def score(self, clip: Clip) -> dict[str, Score]:
        audio, rate, seconds = clip.sound.mono, clip.sound.rate, clip.sound.seconds
        meter = Meter(rate)
        meter.add(audio[None])
        loudness, onset = meter.loudness(), onset_burst(audio, rate)
        found = {
            "silence": Score(silence_ratio(audio, rate), seconds),
            "clipping": Score(clipping_ratio(audio), seconds),
            "clicks": Score(clicks(audio, rate) * 60 / seconds, seconds),
            "loops": Score(loop_ratio(clip.sound.at(_SPEECH_RATE), _SPEECH_RATE), seconds),
        }
        if math.isfinite(loudness):
            found["loudness"] = Score(loudness)
        if math.isfinite(onset):
            found["onset"] = Score(onset)
        return found


def loop_ratio(audio: np.ndarray, rate: int) -> float:
    """Share of the time that lies in a stretch of at least 0.4 s that was heard just before, from
    0.1 s to 3 s ago: a loop. Digital silence and what is quieter than -60 dB of the peak counts as
    none; a held tone is one.

    Frames of 40 log mel bands every 20 ms; two are alike if the correlation of their bands is at
    least 0.98.

    >>> noise = np.random.default_rng(0).standard_normal(16000)
    >>> loop_ratio(noise, 16000), round(loop_ratio(np.tile(noise[:6400], 5), 16000), 1)
    (0.0, 0.8)
    """
    from rvqlm.metrics.mel import mel_filters, spectra

    hop, window = round(0.02 * rate), round(0.04 * rate)
    power = spectra(audio, window, hop) ** 2 @ mel_filters(rate, window, _LOOP_BANDS).T
    loud = power.sum(1) > 1e-6 * power.sum(1).max(initial=0)
    logs = np.log(power + 1e-6 * power.max(initial=1e-9))
    logs -= logs.mean(1, keepdims=True)
    logs /= np.linalg.norm(logs, axis=1, keepdims=True) + 1e-9
    run = round(_LOOP_SECONDS / 0.02)
    repeated = np.zeros(len(logs), bool)
    for lag in range(5, min(150, len(logs) - run) + 1):
        like = ((logs[lag:] * logs[:-lag]).sum(1) >= _LOOP_LIKE) & loud[lag:]
        totals = np.concatenate([[0], np.cumsum(like)])
        starts = np.flatnonzero(totals[run:] - totals[:-run] == run)
        for offset in range(run):
            repeated[lag + starts + offset] = True
    return float(repeated.mean()) if len(repeated) else 0.0


class DistortionJudge(Judge):
    """How far a reconstruction is from its original."""

    name = "distortion"
    columns = (
        Column("mel", "lower", "difference of log10 mel spectra at seven scales"),
        Column("spectral", "lower", "dB between log spectra"),
        Column("si_sdr", "higher", "dB, scale-invariant signal to distortion; 100 for no other"),
    )

    def __init__(self, options: Options):
        self.model = f"rvqlm-{__version__}"

    def score(self, clip: Clip) -> dict[str, Score]:
        reference, sound = clip.aligned()
        a, b = (x.at(sound.rate).astype(np.float64) for x in (reference, sound))
        ratio = float(np.clip(si_sdr(a, b), -_MOST_DB, _MOST_DB))
        return {
            "mel": Score(mel_distance(a, b, sound.rate)),
            "spectral": Score(log_spectral_distance(a, b, sound.rate)),
            "si_sdr": Score(ratio),
        }


class PesqJudge(Judge):
    """Perceptual quality of speech against its original, wide band (ITU-T P.862.2)."""

    name = "pesq"
    columns = (Column("wb", "higher", "1.0 to 4.64, PESQ-wb at 16 kHz"),)

    def __init__(self, options: Options):
        try:
            import pesq
        except ImportError:
            raise NotRun("pesq is not installed: pip install 'rvqlm[metrics]'") from None
        self._measure, self._error = pesq.pesq, pesq.PesqError
        self.model = f"pesq-{importlib.metadata.version('pesq')}"

    def score(self, clip: Clip) -> dict[str, Score]:
        a, b = (x.at(_SPEECH_RATE) for x in clip.aligned())
        samples = min(len(a), len(b))
        if samples < _SPEECH_RATE // 4:  # it reads beyond what is shorter
            raise Nothing("less than 0.25 s, which PESQ does not take")
        try:
            found = self._measure(_SPEECH_RATE, a[:samples], b[:samples], "wb")
        except (self._error, ValueError, ZeroDivisionError) as e:
            reason = e.args[0] if e.args else type(e).__name__
            reason = reason.decode() if isinstance(reason, bytes) else reason
            raise Nothing(f"PESQ: {reason}") from None
        if not math.isfinite(found):
            raise Nothing("PESQ gives no number")
        return {"wb": Score(float(found))}


class StoiJudge(Judge):
    """Intelligibility of speech against its original (Taal et al., 2011; extended: Jensen & Taal,
    2016)."""

    name = "stoi"
    columns = (
        Column("stoi", "higher", "0 to 1"),
        Column("estoi", "higher", "0 to 1, for noise that comes and goes"),
    )

    def __init__(self, options: Options):
        try:
            from pystoi import stoi
        except ImportError:
            raise NotRun("pystoi is not installed: pip install 'rvqlm[metrics]'") from None
        self._measure = stoi
        self.model = f"pystoi-{importlib.metadata.version('pystoi')}"

    def score(self, clip: Clip) -> dict[str, Score]:
        import warnings

        a, b = (x.at(_SPEECH_RATE) for x in clip.aligned())
        samples = min(len(a), len(b))
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # too little speech: it returns 1e-5
            try:
                found = [
                    self._measure(a[:samples], b[:samples], _SPEECH_RATE, extended=e)
                    for e in (False, True)
                ]
            except (RuntimeWarning, ValueError) as e:
                raise Nothing(f"STOI: {str(e).split('.')[0][:80]}") from None
        return {name: Score(float(v)) for name, v in zip(("stoi", "estoi"), found)}
