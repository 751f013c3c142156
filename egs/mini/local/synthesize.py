"""Make the embedded corpus: hours of speech by many voices, with transcripts and phonemes.

Writes OUT_DIR/SPEAKER/ID.wav (16 kHz, mono, 16 bit) and OUT_DIR/transcripts.jsonl, one object a
line, which also has when each phoneme is said: [IPA, first second, seconds]. The plan (who says
what, how fast, how loud) follows from the seed alone: any number of jobs gives the same bytes, and
more hours only add utterances. An interrupted run resumes where it stopped.

    python egs/mini/local/synthesize.py --hours 6 --seed 0 --jobs 2 --out-dir data/audio
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import wave
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import soxr
import speech
from sentences import SentenceMaker
from speakers import Speaker, all_speakers
from tqdm import tqdm

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError

SAMPLING_RATE = 16000
TRANSCRIPTS = "transcripts.jsonl"
JOURNAL = "transcripts.partial.jsonl"
WAV_HEADER = 44  # bytes
LEAD, TAIL = 0.12, 0.25  # seconds of silence around the utterance
PEAK = 0.9
CHUNK = 16  # utterances per task
# espeak at 100 clips inside with the louder variants
VOLUME = 40


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass
class Flags:
    hours: float = 6.0
    """Hours of audio, to within a few percent."""
    seed: int = 0
    """Another seed gives other sentences; the speakers stay."""
    jobs: int = field(default_factory=_cores)
    """Processes; the corpus does not depend on their number."""
    out_dir: Path = Path("data/audio")
    """Folder for audio and transcripts."""
    speakers: tuple[str, ...] = ()
    """Only these, such as m1-us (speakers.py); all when none are named."""


@dataclass(frozen=True)
class Utterance:
    id: str
    speaker: str
    variant: str
    voice: str
    gender: str
    rate: int
    pitch: int
    pitch_range: int
    level: float  # dB of full scale
    text: str

    @property
    def path(self) -> str:
        """Relative to the folder of the corpus."""
        return f"{self.speaker}/{self.id}.wav"


def plan(hours: float, seed: int, names: tuple[str, ...] = ()) -> list[Utterance]:
    """Utterances of about `hours` hours by the speakers of these names, all by default; a plan of
    fewer hours is the beginning of one of more."""
    rng = np.random.default_rng([seed, 0xD1CE])
    speakers = [s for s in all_speakers() if not names or s.id in names]
    if unknown := set(names) - {s.id for s in speakers}:
        known = ", ".join(s.id for s in all_speakers())
        raise UserError(f"--speakers {', '.join(sorted(unknown))}: the speakers are {known}")
    sentences = SentenceMaker(seed)
    utterances: list[Utterance] = []
    seconds = 0.0
    while seconds < hours * 3600:
        for k in rng.permutation(len(speakers)):  # everybody speaks once a round
            utterance = _utterance(len(utterances), speakers[k], next(sentences), rng)
            utterances.append(utterance)
            seconds += expected_seconds(utterance.text, utterance.rate)
            if seconds >= hours * 3600:
                break
    return utterances


def _utterance(index: int, who: Speaker, text: str, rng: np.random.Generator) -> Utterance:
    # nobody speaks every sentence alike
    pace, pitch, level = rng.uniform(-1.0, 1.0, 3)
    return Utterance(
        id=f"{who.id}-{index:06d}",
        speaker=who.id,
        variant=who.variant,
        voice=who.voice,
        gender=who.gender,
        rate=who.rate + round(10 * pace),
        pitch=who.pitch + round(3 * pitch),
        pitch_range=who.pitch_range,
        level=round(who.level + 1.5 * level, 2),
        text=text,
    )


def expected_seconds(text: str, rate: int) -> float:
    """Duration of an utterance guessed from its letters and commas, fitted to measured ones."""
    return 0.595 + (0.0474 * len(text) + 0.237 * text.count(",")) * 175 / rate


def synthesize(utterance: Utterance, out_dir: Path) -> dict:
    """Write one utterance and return its line of the transcripts."""
    u = utterance
    raw, rate, phones = speech.synthesize_timed(
        u.text, u.voice, u.rate, u.pitch, u.pitch_range, variant=u.variant, volume=VOLUME
    )
    voice = soxr.resample(raw.astype(np.float32) / 32768, rate, SAMPLING_RATE, quality="HQ")
    rms, peak = float(np.sqrt(np.mean(voice**2))), float(np.abs(voice).max())
    gain = min(10 ** (u.level / 20) / rms, PEAK / peak)
    lead, tail = round(LEAD * SAMPLING_RATE), round(TAIL * SAMPLING_RATE)
    audio = np.zeros(lead + len(voice) + tail, np.int16)  # (S,)
    audio[lead : lead + len(voice)] = np.rint(voice * (gain * 32767)).astype(np.int16)

    _write_wav(out_dir / u.path, audio)
    return {
        **asdict(u),
        "phonemes": speech.phonemes(u.text, u.voice),
        "path": u.path,
        "num_samples": len(audio),
        "sampling_rate": SAMPLING_RATE,
        "duration": len(audio) / SAMPLING_RATE,
        "alignment": [
            [p.ipa, round(LEAD + p.start / rate, 5), round((p.end - p.start) / rate, 5)]
            for p in phones
        ],
    }


def _write_wav(path: Path, audio: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file, wave.open(file, "wb") as wav:
            wav.setparams((1, 2, SAMPLING_RATE, len(audio), "NONE", None))
            wav.writeframesraw(audio.astype("<i2", copy=False))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _work(task: tuple[list[Utterance], Path]) -> list[dict]:
    utterances, out_dir = task
    return [synthesize(utterance, out_dir) for utterance in utterances]


def synthesize_corpus(
    out_dir: Path, hours: float, seed: int, jobs: int, speakers: tuple[str, ...] = ()
) -> list[dict]:
    """Make what is missing of the corpus in `out_dir` and return the lines of its transcripts."""
    if hours <= 0:
        raise UserError(f"--hours {hours:g}: give a positive number")
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least 1")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"--out-dir {out_dir}: not a folder; remove the file or give another"
        ) from None
    utterances = plan(hours, seed, speakers)
    done = _finished(out_dir, utterances)
    todo = [u for u in utterances if u.id not in done]
    if done:
        print(f"{len(done)} of {len(utterances)} utterances are there already", flush=True)
    for speaker in {u.speaker for u in todo}:
        (out_dir / speaker).mkdir(parents=True, exist_ok=True)
    # grouped by speaker: files of one folder are written together
    todo.sort(key=lambda u: u.id)
    tasks = [(todo[i : i + CHUNK], out_dir) for i in range(0, len(todo), CHUNK)]
    if tasks:
        total = sum(expected_seconds(u.text, u.rate) for u in todo)
        bar = tqdm(
            total=round(total),
            unit="s of audio",
            desc="synthesize",
            bar_format="{desc}: {percentage:3.0f}% {n:.0f}/{total:.0f} s "
            "[{elapsed}<{remaining}, {rate_noinv_fmt}]",
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )
        with bar, open(out_dir / JOURNAL, "a", encoding="utf-8") as journal:
            for task, entries in zip(tasks, _run(tasks, jobs)):
                for entry in entries:
                    journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    done[entry["id"]] = entry
                journal.flush()
                bar.update(sum(expected_seconds(u.text, u.rate) for u in task[0]))
    entries = [done[u.id] for u in utterances]
    _write_lines(out_dir / TRANSCRIPTS, entries)
    (out_dir / JOURNAL).unlink(missing_ok=True)
    return entries


def _run(tasks: list, jobs: int) -> Iterator[list[dict]]:
    """Results of the tasks, in their order."""
    if jobs == 1 or len(tasks) == 1:
        yield from map(_work, tasks)
        return
    # Ctrl-C is the parent's business; a worker that dies raises here instead of hanging
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from pool.map(_work, tasks)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed (out of memory?); run the same command again, which goes "
            "on from here, perhaps with fewer --jobs"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(out_dir: Path, utterances: list[Utterance]) -> dict[str, dict]:
    """Transcripts of the utterances whose audio exists in full and was made to this plan."""
    planned = {u.id: asdict(u) for u in utterances}
    done = {}
    for name in (TRANSCRIPTS, JOURNAL):
        path = out_dir / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed while writing it
            want = planned.get(entry.get("id"))
            if want is None or any(entry.get(key) != value for key, value in want.items()):
                continue
            if "alignment" not in entry:
                continue  # of a version that kept no times; the audio becomes the same
            audio = out_dir / entry["path"]
            size = WAV_HEADER + 2 * entry["num_samples"]
            if audio.exists() and audio.stat().st_size == size:
                done[entry["id"]] = entry
    return done


def _write_lines(path: Path, entries: list[dict]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "synthesize.py", "Make the embedded speech corpus.", argv)
    entries = synthesize_corpus(flags.out_dir, flags.hours, flags.seed, flags.jobs, flags.speakers)
    hours = sum(entry["duration"] for entry in entries) / 3600
    print(
        f"{len(entries)} utterances by {len({e['speaker'] for e in entries})} speakers, "
        f"{hours:.2f} hours: {flags.out_dir / TRANSCRIPTS}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
