"""The embedded corpus: its words and sentences, the same bytes for any number of jobs, resuming."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvqlm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "egs" / "mini" / "local"
sys.path.insert(0, str(LOCAL))

import prepare_mini  # noqa: E402
import sentences  # noqa: E402
import speakers  # noqa: E402
import synthesize  # noqa: E402

HOURS = 0.04  # three tasks


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    synthesize.synthesize_corpus(folder, HOURS, seed=0, jobs=1)
    return folder


@pytest.fixture
def copy_of_corpus(corpus, tmp_path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "copy"))


# words and sentences


def test_vocabulary_has_a_thousand_words_all_of_them_used():
    vocabulary = sentences.load_vocabulary()
    words = {word["base"].lower() for entries in vocabulary.values() for word in entries}
    assert len(words) >= 1000
    used = set()
    for templates, _ in sentences.load_grammar().values():
        used.update(name for t in templates for name, _ in sentences._SLOT.findall(t))
    assert not vocabulary.keys() - used


def test_every_slot_of_the_grammar_can_be_filled():
    vocabulary, rules = sentences.load_vocabulary(), sentences.load_grammar()
    for name, (templates, cumulative) in rules.items():
        assert cumulative[-1] == pytest.approx(1.0)
        for template in templates:
            slots = sentences._SLOT.findall(template)
            assert template.count("{") == template.count("}") == len(slots), template
            for slot, form in slots:
                if slot in rules:
                    assert not form, (name, template)
                else:
                    assert all((form or "base") in w for w in vocabulary[slot]), (name, template)


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("carry", "carried carried carrying carries"),
        ("drop", "dropped dropped dropping drops"),
        ("watch", "watched watched watching watches"),
        ("write:wrote:written", "wrote written writing writes"),
        ("agree", "agreed agreed agreeing agrees"),
        ("repair", "repaired repaired repairing repairs"),
        ("begin:began:begun:beginning", "began begun beginning begins"),
        ("hide:hid:hidden", "hid hidden hiding hides"),
    ],
)
def test_verbs_are_inflected(verb, forms):
    got = sentences._verb(verb)
    assert [got[k] for k in ("past", "participle", "ing", "third")] == forms.split()


def test_nouns_are_inflected():
    plurals = [sentences._noun(n)["plural"] for n in ("city", "key", "box", "bench", "man:men")]
    assert plurals == ["cities", "keys", "boxes", "benches", "men"]


def test_sentences_are_unique_well_formed_and_follow_the_seed():
    maker = sentences.SentenceMaker(0)
    said = [next(maker) for _ in range(6000)]
    assert len(set(said)) == len(said)
    for text in said:
        assert re.fullmatch(r"\"?[A-Z][A-Za-z ,.?!'\"-]*[.?!]\"?", text), text
        assert not re.search(r"\b[Aa] (?:[aeio]|hour|honest)", text), text
        assert not re.search(r"\b[Aa]n (?:[^aeiouh]|use|uni)", text), text
        assert 5 <= len(text.split()) <= 30
    assert len(set(re.findall(r"[a-z']+", " ".join(said).lower()))) > 1500
    again, other = sentences.SentenceMaker(0), sentences.SentenceMaker(1)
    assert [next(again) for _ in range(50)] == said[:50]
    assert [next(other) for _ in range(50)] != said[:50]


# the plan


def test_speakers_are_many_distinct_and_balanced():
    voices = speakers.all_speakers()
    assert len({s.id for s in voices}) == len(voices) >= 60
    assert len({(s.variant, s.voice) for s in voices}) == len(voices)
    assert len({s.voice for s in voices}) >= 4
    assert 0.4 < np.mean([s.gender == "female" for s in voices]) < 0.6
    assert speakers.all_speakers() == voices


def test_a_longer_plan_begins_with_the_shorter_one():
    short, long = synthesize.plan(0.2, 0), synthesize.plan(0.5, 0)
    assert len(short) < len(long) and long[: len(short)] == short
    everybody = {s.id for s in speakers.all_speakers()}
    assert {u.speaker for u in synthesize.plan(0.3, 0)} == everybody
    assert len({u.text for u in long}) == len({u.id for u in long}) == len(long)


# the audio


def test_transcripts_describe_the_audio(corpus):
    entries = [json.loads(x) for x in (corpus / "transcripts.jsonl").read_text().splitlines()]
    planned = synthesize.plan(HOURS, 0)
    assert [e["id"] for e in entries] == [u.id for u in planned]
    assert [e["text"] for e in entries] == [u.text for u in planned]
    import soundfile

    for entry in entries:
        audio, rate = soundfile.read(corpus / entry["path"], dtype="float32")
        assert audio.ndim == 1 and rate == entry["sampling_rate"] == 16000
        assert len(audio) == entry["num_samples"] and entry["duration"] == len(audio) / 16000
        assert entry["path"].split("/")[0] == entry["speaker"]
        assert np.abs(audio).max() <= 0.901
        level = 20 * np.log10(audio.std())
        assert -30 < level < -18, entry["id"]
        assert not audio[:1600].any() and not audio[-1600:].any()
        assert len(entry["phonemes"].split()) > 2
    total = sum(e["duration"] for e in entries)
    assert total == pytest.approx(HOURS * 3600, rel=0.1)
    assert not list(corpus.rglob("*.tmp")) and not (corpus / "transcripts.partial.jsonl").exists()


def test_same_bytes_for_any_number_of_jobs(corpus, tmp_path):
    command = [sys.executable, str(LOCAL / "synthesize.py"), "--hours", str(HOURS), "--jobs", "2"]
    done = subprocess.run(
        [*command, "--out-dir", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path) == files_of(corpus)


def test_only_missing_and_broken_files_are_made_again(corpus, copy_of_corpus, monkeypatch):
    expected = files_of(corpus)
    audio = sorted(copy_of_corpus.rglob("*.wav"))
    audio[0].unlink()
    audio[1].write_bytes(audio[1].read_bytes()[:-100])
    made = []
    real = synthesize.synthesize
    monkeypatch.setattr(synthesize, "synthesize", lambda u, d: made.append(u.path) or real(u, d))
    synthesize.synthesize_corpus(copy_of_corpus, HOURS, seed=0, jobs=1)
    assert sorted(made) == sorted(p.relative_to(copy_of_corpus).as_posix() for p in audio[:2])
    assert files_of(copy_of_corpus) == expected


def test_a_corpus_without_times_gets_them(corpus, copy_of_corpus):
    """Of an earlier version; the audio becomes the same again."""
    path = copy_of_corpus / "transcripts.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{k: v for k, v in e.items() if k != "alignment"} for e in entries]
    path.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in old))
    prepare_mini.prepare_mini(copy_of_corpus, copy_of_corpus / "manifests")  # reads the old one
    shutil.rmtree(copy_of_corpus / "manifests")
    synthesize.synthesize_corpus(copy_of_corpus, HOURS, seed=0, jobs=1)
    assert files_of(copy_of_corpus) == files_of(corpus)


def test_interrupted_run_goes_on_where_it_stopped(corpus, tmp_path, monkeypatch):
    made = []
    real = synthesize.synthesize

    def interrupted(utterance, folder):
        if len(made) == synthesize.CHUNK + 3:
            raise KeyboardInterrupt
        made.append(utterance.id)
        return real(utterance, folder)

    monkeypatch.setattr(synthesize, "synthesize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize.synthesize_corpus(tmp_path, HOURS, seed=0, jobs=1)
    assert not (tmp_path / "transcripts.jsonl").exists()
    journal = tmp_path / "transcripts.partial.jsonl"
    with open(journal, "a") as file:
        file.write('{"id": "cut sho')  # killed while writing
    first, made[:] = made[: synthesize.CHUNK], []

    monkeypatch.setattr(synthesize, "synthesize", lambda u, d: made.append(u.id) or real(u, d))
    synthesize.synthesize_corpus(tmp_path, HOURS, seed=0, jobs=1)
    assert made and not set(made) & set(first)
    assert files_of(tmp_path) == files_of(corpus)


def test_another_seed_is_not_mistaken_for_done(copy_of_corpus, corpus):
    entries = synthesize.synthesize_corpus(copy_of_corpus, 0.01, seed=1, jobs=1)
    first = {json.loads(x)["text"] for x in (corpus / "transcripts.jsonl").open()}
    assert not first & {e["text"] for e in entries}


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--hours", "0"], "--hours 0"), (["--jobs", "0"], "--jobs 0")],
)
def test_bad_flags_are_one_line(flags, message, tmp_path, capsys):
    argv = ["--out-dir", str(tmp_path / "x"), *flags]
    assert synthesize.run_main(synthesize.main, argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        synthesize.synthesize_corpus(tmp_path / "file", 0.01, seed=0, jobs=1)


def test_killed_worker_is_one_clear_error(tmp_path, monkeypatch):
    class Pool(synthesize.ProcessPoolExecutor):
        def map(self, work, tasks):
            return super().map(os._exit, [9])

    monkeypatch.setattr(synthesize, "ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match="run the same command again"):
        synthesize.synthesize_corpus(tmp_path, HOURS, seed=0, jobs=2)


def test_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(synthesize.os, "replace", full)
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="No space"):
        synthesize._write_wav(tmp_path / "a" / "x.wav", np.zeros(100, np.int16))
    assert not list((tmp_path / "a").iterdir())


# the manifests


def test_manifests_resolve_from_the_recipe_folder(corpus, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "audio").symlink_to(corpus)
    monkeypatch.chdir(tmp_path)
    assert prepare_mini.main([]) == 0

    from lhotse import CutSet, RecordingSet, SupervisionSet, validate

    folder = Path("data/manifests")
    recordings = RecordingSet.from_file(folder / "mini_recordings.jsonl.gz")
    supervisions = SupervisionSet.from_file(folder / "mini_supervisions.jsonl.gz")
    cuts = CutSet.from_file(folder / "mini_cuts.jsonl.gz").to_eager()
    for manifest in (recordings, supervisions, cuts):
        validate(manifest)
    entries = [json.loads(x) for x in (corpus / "transcripts.jsonl").open()]
    assert [c.id for c in cuts] == [r.id for r in recordings] == [e["id"] for e in entries]
    for cut, entry in zip(cuts, entries):
        supervision = cut.supervisions[0]
        assert not Path(cut.recording.sources[0].source).is_absolute()
        assert cut.num_samples == entry["num_samples"]
        assert (supervision.speaker, supervision.text) == (entry["variant"], entry["text"])
        assert supervision.custom["phonemes"] == entry["phonemes"]
        assert supervision.custom["accented"] == entry["speaker"]
        phones = supervision.alignment["phone"]
        assert "".join(p.symbol for p in phones) == entry["phonemes"].replace(" ", "")
        assert phones[0].start >= synthesize.LEAD and phones[-1].end <= cut.duration
    assert cuts[0].load_audio().shape == (1, entries[0]["num_samples"])
    assert not list(folder.glob("*tmp*"))


def test_missing_audio_is_named(copy_of_corpus, tmp_path):
    victim = sorted(copy_of_corpus.rglob("*.wav"))[3]
    victim.write_bytes(b"RIFF")
    with pytest.raises(UserError, match=victim.name):
        prepare_mini.prepare_mini(copy_of_corpus, tmp_path / "manifests")
    assert not (tmp_path / "manifests").exists()
    with pytest.raises(UserError, match=r"synthesize\.py first"):
        prepare_mini.prepare_mini(tmp_path / "nowhere", tmp_path / "manifests")
