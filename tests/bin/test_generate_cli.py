"""`rvqlm generate` as a user runs it: prompts of all kinds, what lies beside the wav, mistakes."""

import json

import numpy as np
import pytest
import soundfile
import torch

import rvqlm.bin.main
from rvqlm.audio.load import load_file
from rvqlm.checkpoints.file import save_checkpoint
from rvqlm.codecs.chunking import encode_whole
from rvqlm.codecs.registry import load_codec
from rvqlm.inference.conditions import ConditionArgs
from rvqlm.inference.generate import SampleRequest, generate
from rvqlm.inference.prompts import PromptArgs, read_prompts
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.factory import config_dict
from rvqlm.models.masked import Masked, MaskedConfig

LEVELS = 2
SMALL = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1}


def rvqlm_command(*words):
    return rvqlm.bin.main.main([str(w) for w in words])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """An untrained model of two levels of the embedded codec, in a checkpoint."""
    torch.manual_seed(0)
    model = CodecLM(CodecLMConfig(**SMALL), load_codec("spectral", num_codebooks=LEVELS).info)
    torch.nn.init.normal_(model.heads.weight)
    return save_experiment(model, tmp_path_factory.mktemp("exp"))


def save_experiment(model, folder):
    state = {
        "format": 3,
        "model": model.state_dict(),
        "ema": None,
        "model_name": model.name,
        "model_config": config_dict(model),
        "codec": model.info.to_dict(),
        "conditions": {},
        "step": 7,
        "optimizer": [],
        "loader": {},
    }
    save_checkpoint(state, folder / "best.pt")
    return folder


@pytest.fixture
def tone(tmp_path):
    path = tmp_path / "a tone.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(24000) / 9), 24000)  # 1 s, not the codec's rate
    return path


def test_unprompted(experiment, tmp_path):
    words = ["generate", "--exp-dir", experiment, "--num-samples", 3, "--seconds", 0.6]
    words += ["--min-seconds", 0.6, "--batch-size", 2, "--temperature", 0.8]
    assert rvqlm_command(*words, "--out-dir", tmp_path / "one") == 0
    names = [f"unprompted-{i:02d}" for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(
        [f"{n}.wav" for n in names] + [f"{n}.json" for n in names]
    )
    row = json.loads((tmp_path / "one/unprompted-02.json").read_text())
    assert row["kind"] == "unprompted" and row["prompt"] is None and row["prompt_seconds"] == 0
    assert row["step"] == 7 and row["settings"]["temperature"] == 0.8 and row["stop"] == "length"
    assert 0 <= row["silence_ratio"] <= 1 and 0 <= row["repetition_ratio"] <= 1
    assert row["codec"]["num_codebooks"] == LEVELS and "--num-samples 3" in row["command"]
    # one of a batch of two, then alone; frames of 20 ms, and steps that the delay adds
    first = json.loads((tmp_path / "one/unprompted-00.json").read_text())
    assert (first["batch_size"], row["batch_size"]) == (2, 1)
    assert first["passes"] == row["passes"] == 30 + LEVELS - 1
    assert row["generation_seconds"] * row["real_time_factor"] == pytest.approx(0.6)
    audio, rate = soundfile.read(tmp_path / "one/unprompted-02.wav")
    assert rate == 16000 and len(audio) == 9600 and row["seconds"] == 0.6

    # the seed decides; how samples share batches doesn't
    assert rvqlm_command(*words, "--batch-size", 8, "--out-dir", tmp_path / "two") == 0
    assert rvqlm_command(*words, "--seed", 1, "--out-dir", tmp_path / "three") == 0
    read = lambda d: (tmp_path / d / "unprompted-02.wav").read_bytes()  # noqa: E731
    assert read("one") == read("two") != read("three")


def test_ways_of_drawing(experiment, tmp_path):
    """Flags reach the draws, and are recorded where they were set."""
    words = ["generate", "--exp-dir", experiment, "--seconds", 0.2, "--min-seconds", 0.2]
    drawn = ["--min-p", 0.9, "--level-temperatures", 0.1, 2.0, "--repetition-window", 10]
    codes = load_codec("spectral", num_codebooks=LEVELS).info.codebook_size
    banned = ["--ban", *(f"0:{code}" for code in range(0, codes, 2))]
    rows, sounds = {}, {}
    for name, flags in {"plain": [], "one": [*drawn, "--best-of", 2], "two": banned}.items():
        out = tmp_path / name
        assert rvqlm_command(*words, *flags, "--precision", "fp32", "--out-dir", out) == 0
        rows[name] = json.loads((out / "unprompted-00.json").read_text())
        sounds[name] = (out / "unprompted-00.wav").read_bytes()
        assert rows[name]["precision"] == "float32"
    assert len(set(sounds.values())) == 3
    assert rows["one"]["likelihood"] < 0 and "likelihood" not in rows["plain"]
    usual = set(rows["plain"]["settings"])
    assert set(rows["two"]["settings"]) - usual == {"ban"}
    changed = {k: v for k, v in rows["one"]["settings"].items() if k not in usual}
    wanted = {"min_p": 0.9, "level_temperatures": [0.1, 2.0], "repetition_window": 10}
    assert changed == {**wanted, "best_of": 2}


def test_continues_audio_files(experiment, tone, tmp_path):
    out = tmp_path / "out"
    words = ["generate", "--exp-dir", experiment / "best.pt", "--prompt", tone, "--out-dir", out]
    assert rvqlm_command(*words, "--prompt-seconds", 0.5, "--seconds", 0.4, "--num-samples", 2) == 0
    row = json.loads((out / "continuation-a tone-01.json").read_text())
    assert row["kind"] == "continuation" and row["prompt"] == str(tone)
    assert row["prompt_seconds"] == 0.5 and row["seconds"] <= 0.9
    audio, _ = soundfile.read(out / "continuation-a tone-01.wav")
    assert len(audio) == round(row["seconds"] * 16000)


def test_nothing_that_is_there_is_replaced(experiment, tone, tmp_path):
    """Prompts of one name, or of one that looks like another's with its number, and later calls."""
    out = tmp_path / "out"
    words = ["generate", "--exp-dir", experiment, "--out-dir", out, "--seconds", 0.1]
    (tmp_path / "x").mkdir()
    prompts = [tmp_path / name for name in ("a.wav", "x/a.wav", "a-01.wav")]
    for path in prompts:
        path.write_bytes(tone.read_bytes())
    assert rvqlm_command(*words, "--prompt", *prompts) == 0
    samples = {p.stem: json.loads(p.read_text())["prompt"] for p in out.glob("*.json")}
    assert sorted(samples.values()) == sorted(map(str, prompts)) and len(samples) == 3
    assert {p.stem for p in out.glob("*.wav")} == set(samples)

    before = {p: p.read_bytes() for p in out.iterdir()}
    assert rvqlm_command(*words, "--prompt", prompts[0], "--seed", 5) == 0
    assert rvqlm_command(*words, "--num-samples", 2) == 0
    assert rvqlm_command(*words, "--num-samples", 2, "--seed", 5) == 0
    assert {p: p.read_bytes() for p in before} == before
    new = {p.stem for p in out.glob("*.wav")} - set(samples)
    unprompted = {f"unprompted-{i:02d}" for i in range(4)}
    assert new - unprompted == {"continuation-a-02"} and new > unprompted
    first = json.loads((out / "unprompted-00.json").read_text())
    assert first["seed"] == 0
    assert rvqlm_command(*words, "--num-samples", 2, "--seed", 9, "--overwrite") == 0
    assert json.loads((out / "unprompted-00.json").read_text())["seed"] == 9
    assert len(list(out.glob("*.wav"))) == len(before) // 2 + 5


def test_fills_gaps(experiment, tmp_path, capsys):
    """What lies around a gap stays as it is, of files and of cuts; other families refuse."""
    torch.manual_seed(0)
    info = load_codec("spectral", num_codebooks=LEVELS).info
    model = Masked(MaskedConfig(**SMALL), info)
    masked = save_experiment(model, tmp_path)
    audio, rng = tmp_path / "audio", np.random.default_rng(0)
    audio.mkdir()
    for n, seconds in enumerate((1.0, 1.5, 0.4)):
        noise = rng.uniform(-0.2, 0.2, round(16000 * seconds))
        soundfile.write(audio / f"r{n}.wav", noise, 16000)
    tokens, out = tmp_path / "tokens", tmp_path / "out"
    made = ["--input", audio, "--out-dir", tokens, "--num-codebooks", LEVELS, "--jobs", 1]
    assert rvqlm_command("tokenize", *made) == 0
    assert rvqlm_command("split", "--manifest-dir", tokens, "--valid", 0, "--test", 0) == 0
    assert rvqlm_command("index", "--manifest-dir", tokens) == 0
    words = ["generate", "--exp-dir", masked / "best.pt", "--out-dir", out, "--infill", "0.5-0.8"]
    files = [audio / "r0.wav", audio / "r1.wav"]
    assert rvqlm_command(*words, "--prompt", *files, "--num-samples", 2) == 0
    samples = {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}
    assert set(samples) == {f"infilling-r{n}-{j:02d}" for n in (0, 1) for j in (0, 1)}
    for name, about in samples.items():
        assert about["kind"] == "infilling" and about["infill"] == [0.5, 0.8]
        assert about["seconds"] == (1.0 if "r0" in name else 1.5) and about["batch_size"] == 2
        assert about["generation_seconds"] * about["real_time_factor"] == pytest.approx(0.6)
    codec = load_codec("spectral", num_codebooks=LEVELS)
    args = PromptArgs(prompt=tuple(map(str, files)), infill=("0.5-0.8",))
    prompts = read_prompts(args, ConditionArgs(), model, codec, 1, 0)
    for sample, path in zip(generate(model, codec, SampleRequest(prompts), {}), files):
        codes = encode_whole(codec, torch.from_numpy(load_file(str(path), 16000))).codes
        assert len(sample.codes) == len(codes) and sample.audio.shape[1] == 320 * len(codes)
        same = (sample.codes == codes).all(1)
        assert same[:25].all() and same[40:].all() and not same[25:40].all()
    cuts = ["--manifest-dir", tokens, "--split", "train", "--out-dir", tmp_path / "cuts"]
    assert rvqlm_command(*words, *cuts) == 0
    assert {p.stem for p in (tmp_path / "cuts").glob("*.wav")} == {"infilling-r0", "infilling-r1"}
    assert "only 2 cuts of split 'train' are long enough" in capsys.readouterr().err

    def refused(*flags):
        assert rvqlm_command(*words, *flags) == 2
        return capsys.readouterr().err

    assert "--infill goes with --prompt or --manifest-dir" in refused()
    assert "trained without --ar-share" in refused("--prompt", files[0], "--frame-by-frame")
    chunks = ["--chunk-seconds", 0.1, "--overlap-seconds", 0]
    assert rvqlm_command(*words, "--prompt", files[0], *chunks, "--overwrite") == 0
    settings = json.loads((out / "infilling-r0.json").read_text())["settings"]
    assert settings["chunk_seconds"] == 0.1 and settings["overlap_seconds"] == 0
    assert "frame_by_frame" not in settings
    prompt = ["--prompt", files[0]]
    assert "--seconds does nothing with --infill" in refused(*prompt, "--seconds", 3)
    assert "--infill 2: give its start and end" in refused(*prompt, "--infill", "2")
    assert "--infill 2-1: give its start and end" in refused(*prompt, "--infill", "2-1")
    assert "r0.wav ends after 1.00 s, and the gap at 1.00 s" in refused(
        *prompt, "--infill", "0.5-1"
    )
    said = refused(*prompt, "--exp-dir", experiment)
    assert "codec-lm sees only what came before and cannot fill a gap" in said


def test_continues_held_out_cuts(experiment, tmp_path, capsys):
    audio = tmp_path / "audio"
    audio.mkdir()
    rng = np.random.default_rng(0)
    for n in range(4):
        soundfile.write(audio / f"r{n}.wav", rng.uniform(-0.2, 0.2, 16000), 16000)
    tokens = tmp_path / "tokens"
    made = ["--input", audio, "--out-dir", tokens, "--num-codebooks", LEVELS, "--jobs", 1]
    assert rvqlm_command("tokenize", *made) == 0
    assert rvqlm_command("split", "--manifest-dir", tokens, "--valid", 1, "--test", 2) == 0
    assert rvqlm_command("index", "--manifest-dir", tokens) == 0
    words = ["generate", "--exp-dir", experiment, "--manifest-dir", tokens, "--seconds", 0.2]
    words += ["--prompt-seconds", 0.3, "--out-dir", tmp_path / "out"]
    assert rvqlm_command(*words, "--num-prompts", 2) == 0
    rows = [json.loads(p.read_text()) for p in sorted((tmp_path / "out").glob("*.json"))]
    assert len(rows) == 2 == len({r["prompt"] for r in rows})
    assert all(r["prompt_seconds"] == 0.3 for r in rows)
    assert rvqlm_command(*words, "--num-prompts", 3) == 0  # as many as there are
    assert "only 2 cuts of split 'test' are longer" in capsys.readouterr().err
    assert rvqlm_command(*words, "--prompt-seconds", 0.9) == 2
    assert "no cut of split 'test' is longer than 1.5 times" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--exp-dir", "nowhere"], "nowhere: no such experiment"),
        (["--temperature", -1, "--seconds", 0], "--temperature -1.0 must not be negative"),
        (["--temperature", -1, "--seconds", 0], "--seconds 0.0 must be positive"),
        (["--prompt", "no.wav"], "no.wav"),
        (["--midi", "a.mid", "--midi-start", "nan"], "--midi-start nan: give a number"),
        (["--midi-start", 3], "--midi-start 3.0 must be a second of --midi files"),
        (["--midi", "a.mid"], "--midi: the model was trained without --conditions midi"),
        (["--prompt", "a.wav", "--manifest-dir", "d"], "exclude each other"),
        (["--manifest-dir", "nowhere"], "nowhere"),
        (["--checkpoint", "latest"], "latest.pt: no such checkpoint"),
        (["--codec", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_status_2(experiment, tmp_path, capsys, flags, message):
    given = ["--exp-dir", experiment, "--out-dir", tmp_path / "out"]
    assert rvqlm_command("generate", *given, *flags) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("rvqlm generate: error:") and "\n" not in error
    assert not list(tmp_path.glob("out/*"))


def test_a_foreign_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(b"not a checkpoint")
    assert rvqlm_command("generate", "--exp-dir", path) == 2
    assert "not a checkpoint (" in capsys.readouterr().err
    torch.save({"weights": torch.zeros(2)}, path)
    assert rvqlm_command("generate", "--exp-dir", path) == 2
    assert "not a checkpoint of rvqlm" in capsys.readouterr().err


def test_streams_are_what_files_are(experiment, tmp_path, tone, capsysbinary, monkeypatch):
    words = ["generate", "--exp-dir", experiment, "--seconds", 0.6, "--min-seconds", 0.6]
    words += ["--prompt", tone, "--prompt-seconds", 0.4, "--seed", 2]
    assert rvqlm_command(*words, "--out-dir", tmp_path / "a") == 0
    assert rvqlm_command(*words, "--out-dir", tmp_path / "b", "--stream", "file") == 0
    (wav,) = (tmp_path / "a").glob("*.wav")
    same = tmp_path / "b" / wav.name
    assert same.read_bytes() == wav.read_bytes()
    made, streamed = (json.loads(p.with_suffix(".json").read_text()) for p in (wav, same))
    assert 0 < streamed["first_audio_seconds"] <= streamed["generation_seconds"]
    for name in ("kind", "prompt", "stop", "seconds", "settings", "repetition_ratio"):
        assert made[name] == streamed[name]
    capsysbinary.readouterr()
    assert rvqlm_command(*words, "--stream", "-", "--stream-format", "pcm") == 0
    out, err = capsysbinary.readouterr()
    assert out == wav.read_bytes()[44:] and b"heard after" in err
    assert not (experiment / "samples").exists()  # nothing but the stream


def test_a_stream_that_is_interrupted(experiment, tmp_path, capsys, monkeypatch):
    """Nothing half-written is left under the final name, unless it is asked for."""
    from rvqlm.inference import stream

    step = stream.Streamer.step
    words = ["generate", "--exp-dir", experiment, "--seconds", 6, "--min-seconds", 6]
    words += ["--stream", "file", "--batch-size", 1, "--out-dir"]

    def stop_in_the_middle(streamer):
        found = step(streamer)
        if any(h.audio.shape[1] for h in found):
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(stream.Streamer, "step", stop_in_the_middle)
    assert rvqlm_command(*words, tmp_path / "a") == 130
    assert not list((tmp_path / "a").glob("*.wav")) and not list((tmp_path / "a").glob("*.tmp"))

    steps = []

    def stop_later(streamer):
        steps.append(1)
        if len(steps) > 80:
            raise KeyboardInterrupt
        return step(streamer)

    monkeypatch.setattr(stream.Streamer, "step", stop_later)
    assert rvqlm_command(*words, tmp_path / "b", "--keep-partial") == 130
    (wav,) = (tmp_path / "b").glob("*.wav")
    assert 0.3 < soundfile.info(wav).duration < 1.5 and not list((tmp_path / "b").glob("*.json"))


def test_streams_refuse_what_they_cannot(experiment, tmp_path, capsys):
    words = ["generate", "--exp-dir", experiment, "--seconds", 0.2]
    for more, message in [
        (["--stream", "-", "--num-samples", 2], "one sample goes to stdout, and 2 are asked for"),
        (["--stream", "-", "--out-dir", tmp_path], "writes no files"),
        (["--stream-format", "pcm"], "--stream-format pcm goes with --stream -"),
        (["--keep-partial"], "--keep-partial goes with --stream file"),
        (["--context-seconds", 0], "--context-seconds 0.0 must be more than 0"),
        (["--overlap-seconds", 1], "goes with --chunk-seconds or --context-seconds"),
        (["--context-seconds", 0.1, "--overlap-seconds", 0.1], "must be less than --context"),
    ]:
        assert rvqlm_command(*words, *more) == 2
        assert message in capsys.readouterr().err


def test_windows_are_the_same_streamed(experiment, tmp_path):
    words = ["generate", "--exp-dir", experiment, "--seconds", 1.2, "--min-seconds", 1.2]
    words += ["--context-seconds", 0.5, "--overlap-seconds", 0.2]
    assert rvqlm_command(*words, "--out-dir", tmp_path / "a") == 0
    assert rvqlm_command(*words, "--out-dir", tmp_path / "b", "--stream", "file") == 0
    (wav,) = (tmp_path / "a").glob("*.wav")
    assert (tmp_path / "b" / wav.name).read_bytes() == wav.read_bytes()
    settings = json.loads(wav.with_suffix(".json").read_text())["settings"]
    assert (settings["context_seconds"], settings["overlap_seconds"]) == (0.5, 0.2)
