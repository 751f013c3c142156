"""Every judge that hears a copy, a half right and a random imitation of speech orders them so,
gives its best figure for what is equal, and hears each clip as if it were alone."""

import numpy as np
import pytest
from judge_fixtures import TEXTS, clip, codec, made, made_judge, speech

from rvqlm.judging import signal
from rvqlm.judging.judge import Nothing, Sound
from rvqlm.judging.notes import Heard, NotesJudge, matched
from rvqlm.judging.pitch import PitchJudge
from rvqlm.judging.quality import DnsmosJudge, UtmosJudge
from rvqlm.judging.recognizers import SphinxJudge
from rvqlm.judging.sets import CodecLatents
from rvqlm.judging.speakers import ResemblyzerJudge
from rvqlm.metrics.distances import frechet_distance, kernel_distance

KINDS = ("copy", "half", "random")
LANGUAGE = {"language": "en"}
UNSURE = ("cer", "signal", "overall")
"""Columns that tell a copy from the others, and not these from each other."""
BEST = {  # of a recording against itself
    "distortion": {"mel": 0, "spectral": 0, "si_sdr": 100},
    "pesq": {"wb": pytest.approx(4.644, abs=1e-3)},
    "stoi": {"stoi": pytest.approx(1), "estoi": pytest.approx(1)},
    "resemblyzer": {"similarity": pytest.approx(1)},
    "crepe": {"error": 0, "voicing": 0},
}


def heard(judge, text: str, kind: str | None) -> dict[str, float]:
    """Figures of an imitation; None: of the recording itself."""
    recording = speech(text)
    sound = recording if kind is None else made(text, kind)
    if judge.name == "dnsmos":  # which repeats it until it fills a window, or some
        sound = Sound(sound.audio[:, :18_400], sound.rate)
    item = clip(sound, reference=recording, voice=recording, text=text)
    return {name: score.value for name, score in judge.score(item).items()}


@pytest.mark.parametrize(
    "kind",
    [
        *(signal.DistortionJudge, signal.PesqJudge, signal.StoiJudge),
        *(SphinxJudge, ResemblyzerJudge, DnsmosJudge, PitchJudge),
    ],
)
def test_copies_before_half_right_before_random(kind):
    judge = made_judge(kind, **LANGUAGE)
    found = {k: heard(judge, TEXTS[0], k) for k in KINDS}
    for column in judge.columns:
        if column.better == "as recorded" or column.name in ("si_sdr", "background"):
            continue  # of phase, which this codec draws anew; of hiss, which random codes have not
        sign = 1 if column.better == "lower" else -1
        # where nothing is voiced in what is random, there is no pitch to be wrong
        values = [found[k][column.name] for k in KINDS if column.name in found[k]]
        first, *others = (sign * value for value in values)
        assert first < min(others, default=np.inf), (column.name, values)
        assert others == sorted(others) or column.name in UNSURE, (column.name, values)
    for column, best in BEST.get(judge.name, {}).items():
        assert heard(judge, TEXTS[0], None)[column] == best, column
    # a clip is heard as if it were alone
    assert heard(judge, TEXTS[0], "copy") == found["copy"]


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_latents_of_copies_are_nearest(distance):
    judge = made_judge(CodecLatents, codec=codec())
    real = np.concatenate([judge.vectors(clip(speech(t))) for t in TEXTS[:2]])
    copies, half, random = (
        np.concatenate([judge.vectors(clip(made(t, kind))) for t in TEXTS[:2]]) for kind in KINDS
    )
    assert distance(real, real) == 0
    assert distance(real, copies) < distance(real, half) < distance(real, random)
    assert judge.model.startswith("spectral-")


def test_signals_that_fail_are_seen():
    judge = made_judge(signal.SignalJudge)

    def figures(audio):
        sound = Sound(np.asarray(audio, np.float32)[None], 16000)
        return {k: v.value for k, v in judge.score(clip(sound)).items()}

    audio = speech(TEXTS[0]).mono
    good = figures(audio)
    assert good["clipping"] == good["clicks"] == good["loops"] == 0 and good["onset"] < 0
    assert figures(0.1 * audio)["loudness"] == pytest.approx(good["loudness"] - 20, abs=0.3)
    assert figures(np.clip(40 * audio, -1, 1))["clipping"] > 0.05
    assert figures(np.concatenate([audio, 0 * audio]))["silence"] > good["silence"] + 0.4
    assert figures(np.concatenate([np.tile(audio[8000:16000], 4), audio]))["loops"] > 0.2
    assert figures(np.concatenate([np.full(300, 0.9), audio]))["onset"] > 0
    spikes = np.concatenate([audio, 0 * audio])
    spikes[[-4000, -20000]] = 0.95
    assert figures(spikes)["clicks"] == pytest.approx(2 * 60 / (len(spikes) / 16000))
    silence = figures(0 * audio)
    assert silence["silence"] == 1 and "loudness" not in silence and silence["loops"] == 0


@pytest.mark.parametrize("kind", [signal.DistortionJudge, signal.PesqJudge, signal.StoiJudge])
def test_what_is_no_reconstruction_is_not_compared(kind):
    judge, sound = made_judge(kind), speech(TEXTS[0])
    with pytest.raises(Nothing, match="no recording"):
        judge.score(clip(sound))
    with pytest.raises(Nothing, match="not as long"):
        judge.score(clip(sound, reference=Sound(sound.audio[:, :8000], 16000)))


@pytest.mark.parametrize(
    "kind", [signal.PesqJudge, signal.StoiJudge, ResemblyzerJudge, DnsmosJudge, PitchJudge]
)
def test_silence_and_a_moment_are_nothing_or_a_number(kind):
    judge = made_judge(kind)
    for samples in (1, 5000):
        sound = Sound(np.zeros((1, samples), np.float32), 16000)
        try:
            found = judge.score(clip(sound, reference=sound, voice=sound))
        except Nothing:
            continue
        assert all(np.isfinite(score.value) for score in found.values())


def test_other_speakers_are_less_alike():
    judge = made_judge(ResemblyzerJudge)
    voice = speech(TEXTS[0])

    def like(sound):
        return judge.score(clip(sound, voice=voice))["similarity"].value

    assert like(speech(TEXTS[1])) > like(speech(TEXTS[1], "m3")) + 0.05
    with pytest.raises(Nothing, match="no recording of the voice"):
        judge.score(clip(voice))


def test_pitch_of_tones():
    judge, t = made_judge(PitchJudge), np.arange(16000) / 16000
    for hz in (110, 440):
        audio = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 8)) * 0.2
        found = judge.score(clip(Sound(audio[None].astype(np.float32), 16000)))
        assert found["median"].value == pytest.approx(hz, rel=0.012)
        assert found["spread"].value < 0.3


def test_notes_heard_are_those_of_the_midi(tmp_path):
    from midi_files import write_midi

    notes = [(0.3, 0.4, 60), (0.8, 0.4, 64), (1.3, 0.5, 67), (1.9, 0.6, 72), (2.6, 0.5, 60)]
    path = tmp_path / "a.mid"
    write_midi(path, [(time, length, pitch, 90) for time, length, pitch in notes])
    rate = 22050
    audio, t = np.zeros(round(3.5 * rate)), np.arange(round(0.6 * rate)) / rate
    for time, length, pitch in notes:
        hz = 440 * 2 ** ((pitch - 69) / 12)
        tone = sum(np.sin(2 * np.pi * hz * k * t) * np.exp(-3 * k * t) / k for k in range(1, 8))
        first = round(time * rate)
        audio[first : first + len(t)] += (0.2 * tone * (t < length))[: len(audio) - first]
    sound = Sound(audio[None].astype(np.float32), rate)
    judge = made_judge(NotesJudge)
    found = judge.score(clip(sound, midi=(str(path), 0.0)))
    assert found["recall"].value == 1 and found["f1"].value >= 0.9
    # what begins a second later is of other notes
    late = judge.score(clip(sound, midi=(str(path), 1.0)))
    assert late["f1"].value < 0.4
    behind = Sound(sound.audio[:, rate:], rate)
    assert judge.score(clip(behind, midi=(str(path), 1.0)))["recall"].value == 1
    with pytest.raises(Nothing, match="no MIDI"):
        judge.score(clip(sound))
    with pytest.raises(Nothing, match="no note"):
        judge.score(clip(sound, midi=(str(path), 60.0)))


def test_notes_are_matched_as_well_as_can_be():
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    rng = np.random.default_rng(0)
    for _ in range(30):
        given, found = (
            Heard(rng.random(n) * 0.6, rng.integers(60, 62, n)) for n in rng.integers(1, 12, 2)
        )
        near = np.abs(given.time[:, None] - found.time) <= 0.05
        pairs = maximum_bipartite_matching(csr_array(near & (given.pitch[:, None] == found.pitch)))
        assert matched(given, found) == (pairs >= 0).sum()


def test_a_graph_by_its_path(tmp_path):
    judge = made_judge(DnsmosJudge)
    from importlib.metadata import distribution

    path = distribution("speechmos").locate_file("speechmos/dnsmos_models/sig_bak_ovr.onnx")
    other = made_judge(UtmosJudge, weights={"utmos": str(path)})
    assert other.model.startswith("sig_bak_ovr-")
    audio = np.resize(speech(TEXTS[0]).audio, (1, 144_160)).astype(np.float32)
    expected = judge._graphs[0].run(None, {"input_1": audio})[0].mean()
    assert other.score(clip(Sound(audio, 16000)))["mos"].value == pytest.approx(expected)
