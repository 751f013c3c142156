"""`rvqlm judge`: recordings, what a codec makes of them, and samples, before judges.

Clips are heard one by one, and every judge hears all of them. What one cannot judge is counted with
its reason; a judge that is not there is not run, with the way to get it; neither stops the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import numpy as np

from rvqlm.cli import bar, counted
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.registry import load_codec, load_codec_like
from rvqlm.errors import UserError
from rvqlm.exchange.names import flat_name
from rvqlm.judging import notes, pitch, quality, recognizers, sets, signal, speakers
from rvqlm.judging.judge import VIEWS, Clip, Judge, Nothing, NotRun, Options, SetJudge, Sound, View
from rvqlm.judging.recordings import Heard, Recordings, open_recordings, read_sound
from rvqlm.judging.samples import Sample, find_samples, sampling_of
from rvqlm.judging.summary import distance_of, halves_of, mean_of, reasons
from rvqlm.metrics.distances import frechet_distance, kernel_distance
from rvqlm.runtime import use_device

JUDGES: dict[str, type[Judge]] = {
    judge.name: judge
    for judge in (
        *(signal.SignalJudge, signal.DistortionJudge, signal.PesqJudge, signal.StoiJudge),
        *(recognizers.SphinxJudge, recognizers.WhisperJudge, recognizers.CtcJudge),
        *(speakers.ResemblyzerJudge, speakers.WavlmJudge),
        *(quality.DnsmosJudge, quality.UtmosJudge, pitch.PitchJudge, notes.NotesJudge),
    )
}
SETS: dict[str, type[SetJudge]] = {
    judge.name: judge
    for judge in (
        *(sets.CodecLatents, sets.VggishEmbeddings, sets.ClapEmbeddings, sets.WavlmEmbeddings),
    )
}
DISTANCES = {"frechet": frechet_distance, "kernel": kernel_distance}


@dataclass
class JudgeConfig:
    """Flags of `rvqlm judge`."""

    samples: tuple[str, ...] = ()
    """Experiments of which samples were generated, folders of samples, or audio files; none: the
    references alone, and what a codec makes of them."""
    references: str = ""
    """Recordings that the samples are compared with: a folder of audio, a token directory, or a
    table (.tsv) with the columns name, path, text, language, voice, midi, part."""
    split: str = "test"
    """Split of a token directory of --references."""
    texts: str = ""
    """What is said in a folder of --references: a table as of rvqlm audio manifest, or a suffix
    such as .txt."""
    judges: tuple[str, ...] = ()
    """Which judges hear them, and embeddings whose distributions are compared; none given: all
    that can. rvqlm judge --list-judges shows them."""
    weights: tuple[str, ...] = ()
    """NAME=PATH of judges whose weights no package brings, or other weights than it does."""
    codec: str = ""
    """Codec of the ceiling, by name or directory; empty: that of the samples or tokens. none: no
    ceiling."""
    language: str = ""
    """Of what is said, where samples and recordings do not say it: en, ru, ..."""
    unpaired: bool = False
    """Compare all references with all samples as sets, whatever their names."""
    keep_prompts: bool = False
    """Judge continuations together with the prompts that they continue."""
    num: int = 0
    """Only the first so many recordings, or samples where there are none; 0: all."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, of judges that run in torch."""
    out: str = ""
    """JSON file, or the folder of one; empty: beside the first sample, or in the current folder."""
    list_judges: bool = False
    """Show the judges, whether they are here, and how to get them; nothing else."""

    def check(self) -> None:
        problems = []
        if not (self.samples or self.references or self.list_judges):
            problems.append("give --samples, --references, or both")
        unknown = [name for name in self.judges if name not in JUDGES and name not in SETS]
        if unknown:
            known = ", ".join([*JUDGES, *SETS])
            problems.append(f"--judges {' '.join(unknown)}: there are {known}")
        for text in self.weights:
            name, _, path = text.partition("=")
            if not path or (name not in JUDGES and name not in SETS):
                problems.append(f"--weights {text}: give JUDGE=PATH")
        if self.unpaired and not (self.samples and self.references):
            problems.append("--unpaired goes with --samples and --references")
        if self.num < 0:
            problems.append(f"--num {self.num}: at least 0")
        if problems:
            raise UserError("; ".join(problems))

    def paths(self) -> dict[str, str]:
        """Paths of weights by judge."""
        return dict(text.split("=", 1) for text in self.weights)


@dataclass
class Panel:
    """The judges that are here, and why others are not."""

    judges: list[Judge] = field(default_factory=list)
    sets: list[SetJudge] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)

    @classmethod
    def gather(cls, wanted: Iterable[str], options: Options) -> Panel:
        """:param wanted: names; empty: all."""
        wanted, panel = set(wanted), cls()
        for known, into in ((JUDGES, panel.judges), (SETS, panel.sets)):
            for name, kind in known.items():
                if not wanted or name in wanted:
                    try:
                        into.append(kind(options))
                    except NotRun as reason:
                        panel.not_run[name] = str(reason)
        return panel


@dataclass
class Findings:
    """What the judges say, clip by clip."""

    panel: Panel
    rows: list[dict] = field(default_factory=list)
    vectors: dict[str, dict[View, dict[str, list[np.ndarray]]]] = field(default_factory=dict)
    """By embedding, view, recording."""
    nothing: dict[tuple[str, View], list[str]] = field(default_factory=dict)
    """By judge and view, why single clips were not judged."""
    unreadable: list[str] = field(default_factory=list)

    def hear(self, clip: Clip) -> None:
        scores, heard, left_out = {}, {}, {}
        for judge in self.panel.judges:
            try:
                for name, score in judge.score(clip).items():
                    scores[f"{judge.name}.{name}"] = [score.value, score.weight]
            except Nothing as reason:
                left_out[judge.name] = str(reason)
            if said := getattr(judge, "heard", ""):
                heard[judge.name] = said
        for judge in self.panel.sets:
            try:
                vectors = judge.vectors(clip)
                places = self.vectors.setdefault(judge.name, {}).setdefault(clip.view, {})
                places.setdefault(clip.recording, []).append(vectors)
            except Nothing as reason:
                left_out[judge.name] = str(reason)
        for name, reason in left_out.items():
            self.nothing.setdefault((name, clip.view), []).append(reason)
        row = {"name": clip.name, "view": clip.view, "recording": clip.recording}
        row |= {"seconds": clip.sound.seconds, "text": clip.text, "scores": scores}
        self.rows.append(row | {"heard": heard, "not_judged": left_out})

    def summary(self) -> dict[str, dict]:
        """By view and figure (`rvqlm.judging.summary`)."""
        views = [view for view in VIEWS if any(row["view"] == view for row in self.rows)]
        found: dict[str, dict] = {view: {} for view in views}
        for view in views:
            rows = [row for row in self.rows if row["view"] == view]
            for name in self.columns():
                known = [(*row["scores"][name], row["recording"]) for row in rows
                         if name in row["scores"]]  # fmt: skip
                if known:
                    found[view][name] = mean_of(*zip(*known))
        for name, by_view in self.vectors.items():
            sides = {v: {r: np.concatenate(x) for r, x in by_view[v].items() if x} for v in by_view}
            reference = sides.get("recordings", {})
            for view in views:
                pair = reference, sides.get(view, {})
                pair = halves_of(reference) if view == "recordings" else pair
                for distance, function in DISTANCES.items() if all(pair) else ():
                    found[view][f"{name}.{distance}"] = distance_of(function, *pair)
        return found

    def columns(self) -> dict[str, tuple[str, bool]]:
        """By figure which way is better, and whether it is a percentage."""
        columns = {
            f"{judge.name}.{c.name}": (c.better, c.percent)
            for judge in self.panel.judges
            for c in judge.columns
        }
        sets = {f"{s.name}.{d}": ("lower", False) for s in self.panel.sets for d in DISTANCES}
        return columns | sets

    def meanings(self) -> dict[str, str]:
        found = {f"{j.name}.{c.name}": c.meaning for j in self.panel.judges for c in j.columns}
        words = "distance of the recordings' distribution; of recordings, between halves of them"
        return found | {f"{s.name}.{d}": words for s in self.panel.sets for d in DISTANCES}

    def not_run(self) -> dict[str, str]:
        """Why judges have no figure at all: they are not here, or no clip is for them."""
        heard = {name.split(".")[0] for row in self.rows for name in row["scores"]}
        heard |= self.vectors.keys()
        found = dict(self.panel.not_run)
        for judge in (*self.panel.judges, *self.panel.sets):
            if judge.name not in heard:
                why = [row["not_judged"].get(judge.name) for row in self.rows]
                found[judge.name] = reasons(filter(None, why))
        return found

    def remarks(self) -> list[str]:
        """Lines on all that was left out."""
        silent = self.not_run()
        lines = [f"not run: {name}: {reason}" for name, reason in silent.items()]
        for (name, view), why in self.nothing.items():
            if name not in silent:
                lines.append(f"not judged by {name}, {view}: {reasons(why)}")
        return lines + [f"left out: {reason}" for reason in self.unreadable]


def judge(config: JudgeConfig) -> tuple[Findings, dict]:
    """Everything that was asked for is heard; the findings, and what they are of.

    :raises UserError: nothing to judge, or flags that do not go together.
    """
    device = use_device(config.device)
    recordings = None
    if config.references:
        recordings = open_recordings(config.references, config.split, config.texts)
    elif config.texts:
        raise UserError(f"--texts {config.texts} is of a folder of --references")
    samples = find_samples(config.samples, None if config.unpaired else recordings)
    codec, why_not = _ceiling(config, recordings, samples, device)
    rate = codec.info.sampling_rate if codec else _rate_of(recordings, samples)
    options = Options(config.paths(), config.language, codec, str(device))
    panel = Panel.gather(config.judges, options)
    if why_not:
        panel.not_run["ceiling"] = why_not
    if not panel.judges and not panel.sets:
        raise UserError(
            "no judge is here: "
            + "; ".join(f"{name}: {why}" for name, why in panel.not_run.items())
        )
    findings = Findings(panel)
    for clip in _clips(config, recordings, samples, codec, rate, findings):
        findings.hear(clip)
    if not findings.rows:
        raise UserError("nothing could be read: " + "; ".join(findings.unreadable[:3]))
    about = {
        "samples": list(config.samples),
        "references": config.references or None,
        "split": config.split if recordings is not None and recordings.codec else None,
        "unpaired": config.unpaired,
        "keep_prompts": config.keep_prompts,
        "sampling": sampling_of(samples) or None,
        "sampling_rate": rate,
        "codec": codec.info.to_dict() if codec else None,
        "judges": {
            j.name: {"model": j.model, **(j.about() if hasattr(j, "about") else {})}
            for j in (*panel.judges, *panel.sets)
        },
    }
    return findings, about


def _ceiling(config, recordings, samples, device) -> tuple[Codec | None, str]:
    """The codec of the ceiling, and why there is none."""
    if config.codec == "none":
        return None, ""
    known = recordings.codec if recordings is not None else None
    for sample in samples:
        if known is None and sample.about.get("codec"):
            known = CodecInfo.from_dict(sample.about["codec"])
    if known is None and not config.codec:
        return None, "no codec is known of these: --codec NAME"
    try:
        if known is None:
            return load_codec(config.codec, device), ""
        return load_codec_like(known, config.codec or None, device), ""
    except UserError as e:
        if config.codec:
            raise
        return None, str(e)


def _rate_of(recordings: Recordings | None, samples: list[Sample]) -> int:
    """Hz of the first file, which all others are brought to."""
    import soundfile

    if recordings is not None and recordings.codec:
        return recordings.codec.sampling_rate
    paths = [s.path for s in samples]
    paths += [r.path for r in recordings.items.values() if r.path] if recordings else []
    for path in paths:
        try:
            return soundfile.info(path).samplerate
        except (RuntimeError, OSError):  # another program reads it, or none
            continue
    return 16000


def _clips(config, recordings, samples, codec, rate, findings) -> Iterator[Clip]:
    """Everything there is to hear, one after the other."""
    by_recording: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.recording is not None:
            by_recording.setdefault(sample.recording, []).append(sample)
    alone = [sample for sample in samples if sample.recording is None]
    most = config.num or inf
    if recordings is not None:
        names = list(by_recording or recordings.items)
        names = names[: int(min(most, len(names)))]
        yield from _of_recordings(config, recordings, names, by_recording, codec, rate, findings)
    alone = alone[: int(min(most, len(alone)))]
    for sample in bar(alone, "judge", unit="clips"):
        yield from _of_sample(config, sample, None, rate, findings)


def _of_recordings(config, recordings, names, by_recording, codec, rate, findings):
    heard = _readable(recordings, names, rate, codec, findings)
    for item in bar(heard, "judge", len(names), unit="recordings"):
        known, name = item.recording, item.recording.name
        mine = by_recording.get(name, [])
        midi = known.midi or next((m for s in mine if (m := s.given("midi"))), None)
        common = {
            "recording": name,
            "reference": item.original,
            "voice": _voice(known.voice, rate, findings) if known.voice else None,
            "text": known.text or next((t for s in mine if (t := s.text(known, True))), None),
            "language": known.language,
            "midi": (midi, 0.0) if midi else None,
        }
        for view, sound in (("recordings", item.original), ("codec", item.decoded)):
            if sound is not None:
                voice = common["voice"] or (item.original if view == "codec" else None)
                yield Clip(name=name, view=view, sound=sound, **{**common, "voice": voice})
        for sample in mine:
            yield from _of_sample(config, sample, Heard(known, item.original, None), rate,
                                  findings, common["voice"])  # fmt: skip


def _readable(recordings, names, rate, codec, findings) -> Iterator[Heard]:
    """The recordings that can be read; the others are counted."""
    for name in names:
        try:
            heard = recordings.read(name, rate, codec)
        except UserError as e:
            findings.unreadable.append(str(e))
            continue
        findings.unreadable += heard.remarks
        yield heard


def _of_sample(config, sample: Sample, heard: Heard | None, rate, findings, voice=None):
    known = heard.recording if heard else None
    whole = sample.keeps_prompt(known, config.keep_prompts) or not sample.prompt_seconds
    try:
        sound = read_sound(sample.path, rate)
    except UserError as e:
        findings.unreadable.append(str(e))
        return
    original, begin = heard.original if heard else None, 0.0
    if not whole:
        begin = sample.prompt_seconds
        sound = Sound(sound.audio[:, round(begin * rate) :], rate)
        if known is None or known.part is None:  # the recording is the prompt and the rest
            rest = original and Sound(original.audio[:, round(begin * rate) :], rate)
            voice = voice or original
            original = rest if rest and rest.audio.size else None
    if not sound.audio.size:
        findings.unreadable.append(f"{sample.path}: nothing behind its prompt")
        return
    if voice is None and (given := sample.given("prompt")):
        voice = _voice(given, rate, findings)
    midi = sample.given("midi") or (known.midi if known else None)
    start = float(sample.given("midi_start") or 0.0)
    yield Clip(
        name=sample.name,
        view="samples",
        recording=known.name if known else sample.name,
        sound=sound,
        reference=original,
        voice=voice or original,
        text=sample.text(known, whole),
        language=sample.given("language") or (known.language if known else None),
        midi=(midi, start + begin) if midi else None,
    )


def _voice(path: str, rate: int, findings: Findings) -> Sound | None:
    try:
        return read_sound(path, rate)
    except UserError as e:
        findings.unreadable.append(str(e))
        return None


def result_name(about: dict, recordings: str) -> str:
    """The name of the result's file: the protocol or references, the model and how it was sampled,
    the judges, and a mark of the versions of these and of all that changes figures beside."""
    settings = {k: v for k, v in about.items() if k not in ("samples", "references")}
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    judges = "+".join(about["judges"])
    words = ["judged", recordings, about["sampling"], judges if len(judges) <= 60 else "", mark]
    return flat_name("_".join(word for word in words if word)) + ".json"


def result_path(config: JudgeConfig, about: dict) -> Path:
    """Where to write.

    :raises UserError: no such folder.
    """
    label = "" if not config.references else Path(config.references).resolve().stem
    if about["split"]:
        label += f"-{about['split']}"
    out = Path(config.out) if config.out else None
    if out is None:
        first = Path(config.samples[0]) if config.samples else Path()
        below = first / "samples"
        out = below if below.is_dir() else first if first.is_dir() else first.parent
    path = out / result_name(about, label) if out.is_dir() or not out.suffix else out
    if not path.parent.is_dir():
        raise UserError(f"--out {config.out}: no folder {path.parent}; make it first")
    return path


def describe_judges(options: Options) -> list[str]:
    """A line for each judge: what it is, or how to get it."""
    lines = []
    panel = Panel.gather((), options)
    here = {j.name: j for j in (*panel.judges, *panel.sets)}
    for name, kind in {**JUDGES, **SETS}.items():
        what = (kind.__doc__ or "").split(". ")[0].split("\n\n")[0]
        what = " ".join(what.split()).rstrip(".")
        state = here[name].model if name in here else f"not here: {panel.not_run[name]}"
        lines.append(f"{name:<14} {what}\n{'':<14} {state}")
    return lines


def counted_clips(findings: Findings) -> str:
    """How much was heard."""
    parts = []
    for view in VIEWS:
        rows = [row for row in findings.rows if row["view"] == view]
        if rows:
            minutes = sum(row["seconds"] for row in rows) / 60
            parts.append(f"{view}: {counted(len(rows), 'clip')}, {minutes:.1f} min")
    return "; ".join(parts)
