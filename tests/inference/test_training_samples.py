"""What a model sounds like while it is trained, and that listening disturbs nothing."""

import gzip
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from condition_fixtures import make_steps
from token_fixtures import make_tokens

import rvqlm.bin.generate
from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint, save_checkpoint
from rvqlm.codecs import registry
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset, build_index
from rvqlm.data.mapped import column_path
from rvqlm.data.plan import Items
from rvqlm.data.ragged import Ragged
from rvqlm.data.text_times import TextTimes
from rvqlm.files import write_json
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.inference.files import read_sample
from rvqlm.inference.training_samples import SampleWriter
from rvqlm.models.factory import build_model, config_dict
from rvqlm.training.config import LogConfig
from rvqlm.training.logger import MetricsLog

SMALL = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    make_tokens(folder, [40, 60, 80, 50], info=registry.load_codec("spectral").info, speakers=2)
    for split in ("valid",):
        with gzip.open(folder / "cuts_train.jsonl.gz") as file:
            lines = file.readlines()
        with gzip.open(folder / f"cuts_{split}.jsonl.gz", "wb") as file:
            file.writelines(lines)
        build_index(folder, split)
    return folder


def make(tokens, exp_dir, **flags):
    config = LogConfig(
        sample_every_steps=1,
        **{"sample_seconds": 0.6, "sample_prompt_seconds": 0.3, "sample_count": 1, **flags},
    )
    dataset = TokenDataset.open(tokens, "valid")
    log = MetricsLog(exp_dir)
    return SampleWriter(config, dataset, 0.5, exp_dir, log, seed=1), log, dataset


def save_model(model, path, step):
    state = {
        "format": 3,
        "model": model.state_dict(),
        "ema": None,
        "model_name": model.name,
        "model_config": config_dict(model),
        "codec": model.info.to_dict(),
        "conditions": {k: c.to_dict() for k, c in model.conditions.items()},
        "step": step,
        "optimizer": [],
        "loader": {},
    }
    save_checkpoint(state, path)


def model_of(dataset, name="codec-lm", **config):
    torch.manual_seed(0)
    return build_model(name, {**SMALL, **config}, dataset.info)


@pytest.mark.parametrize("name", ["codec-lm", "valle", "masked"])
def test_sounds_are_there_and_training_is_as_it_was(tokens, tmp_path, name):
    writer, log, dataset = make(tokens, tmp_path)
    model = model_of(dataset, name).train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    paths = writer.write(model, 7)
    assert torch.equal(torch.rand(3), expected) and model.training
    kinds = [json.loads(p.with_suffix(".json").read_text())["kind"] for p in paths]
    assert kinds == ["continuation", "unprompted"]
    audio, rate = soundfile.read(paths[0])
    assert rate == dataset.info.sampling_rate and 0.3 < len(audio) / rate <= 0.62
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["kind"] == "sample" and line["step"] == 7
    assert len(line["kl_from_data"]) == dataset.info.num_codebooks
    assert all(k >= 0 for k in line["kl_from_data"])
    first = paths[0].read_bytes()
    assert writer.write(model, 8)[0].read_bytes() == first  # the same draws at every step


def test_on_tensorboard(tokens, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer, log, dataset = make(tokens, tmp_path)
    writer.write(model_of(dataset), 3)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"audio": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert any(t.startswith("continuation") for t in tags["audio"]), tags["audio"]
    assert any(t.startswith("unprompted") for t in tags["audio"])
    assert "codes/level_0" in tags["histograms"] and "sample/frames" in tags["scalars"]


def test_recordings_and_what_the_codec_makes_of_them(tokens, tmp_path, capfd):
    from lhotse import CutSet, Recording

    folder = shutil.copytree(tokens, tmp_path / "tokens")
    writer, _, dataset = make(folder, tmp_path)
    info, wav = dataset.info, tmp_path / "a.wav"
    tone = 0.5 * np.sin(np.arange(info.num_samples(100)) / 10)
    soundfile.write(wav, tone, info.sampling_rate)
    cuts = []
    for row in range(len(dataset)):
        recording = Recording.from_file(wav, recording_id=dataset.id_of(row))
        cuts.append(recording.to_cut().with_id(dataset.id_of(row)))
    CutSet.from_cuts(cuts).to_file(folder / "audio_cuts.jsonl.gz")
    paths = writer.write(model_of(dataset), 1)
    prompt = json.loads(paths[0].with_suffix(".json").read_text())["prompt"]
    reference = tmp_path / "samples/reference"
    assert sorted(p.name for p in reference.glob("*.wav")) == [
        f"codec-{prompt}.wav",
        f"original-{prompt}.wav",
    ]
    original, _ = soundfile.read(reference / f"original-{prompt}.wav")
    assert len(original) / info.sampling_rate == pytest.approx(0.6, abs=0.1)
    assert np.abs(original - tone[: len(original)]).max() < 1e-3
    assert len(list(tmp_path.rglob("*.wav"))) == 5
    (folder / "audio_cuts.jsonl.gz").write_bytes(b"no gzip")
    other, _, _ = make(folder, tmp_path / "other")
    capfd.readouterr()
    assert len(other.write(model_of(dataset), 1)) == 2
    assert "samples: no recordings to compare with" in capfd.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"sample_count": 2},
        {"sample_seconds": 0.8},
        {"sample_prompt_seconds": 0.2},
        {"sample_temperature": 0.1},
        {"sample_top_k": 1},
    ],
)
def test_every_flag_has_an_effect(tokens, tmp_path, change):
    def sounds(name, **flags):
        writer, _, dataset = make(tokens, tmp_path / name, **flags)
        model = model_of(dataset, model_end=False)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        return [p.read_bytes() for p in writer.write(model, 1)]

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = sounds("a")
    assert plain and sounds("b", **change) != plain


def test_the_codec_decodes_where_it_is_told(tokens, tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr(
        registry, "load_codec_like", lambda info, name, device: devices.append(device)
    )
    for where in ("cpu", "same"):
        writer, _, dataset = make(tokens, tmp_path, sample_device=where)
        writer._load_codec(model_of(dataset).to("meta"))
    assert [d.type for d in devices] == ["cpu", "meta"]


def test_a_failure_costs_a_line(tokens, tmp_path, capfd):
    writer, _, dataset = make(tokens, tmp_path)
    model = model_of(dataset)
    model.generate = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of luck\nand more"))
    assert writer.write(model, 4) == []
    assert capfd.readouterr().err.endswith("no samples at step 4: out of luck\n")
    writer, _, dataset = make(tokens, tmp_path, sample_prompt_seconds=0.59, sample_seconds=99.0)
    writer.config.sample_prompt_seconds = 50.0
    assert writer.write(model_of(dataset), 5) == []
    assert "no samples at step 5" in capfd.readouterr().err


def test_a_stage_that_cannot_generate_says_so_once_and_leaves_nothing(tokens, tmp_path, capfd):
    writer, _, dataset = make(tokens, tmp_path)
    model = model_of(dataset, "valle", train_stage=1).train()
    assert writer.write(model, 1) == [] and writer.write(model, 2) == []
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "no samples at step 1: this valle" in said
    assert model.training and not (tmp_path / "samples").exists()
    assert writer.write(model_of(dataset, "valle", train_stage=2), 3)
    recognizer = type("Recognizer", (torch.nn.Linear,), {"generates": False, "name": "recognizer"})
    assert writer.write(recognizer(1, 1), 4) == []
    assert "no samples at step 4: a recognizer predicts no codes" in capfd.readouterr().err


def test_conditions_of_the_recordings_are_given(tokens, tmp_path, capfd):
    folder = shutil.copytree(tokens, tmp_path / "tokens")
    make_steps(folder, "midi", "valid")
    writer, _, dataset = make(folder, tmp_path, sample_count=2)
    frames = round(0.5 * float(dataset.info.frame_rate))
    read = ConditionSet.open(dataset, ["midi", "prompt"], prompt_frames=frames, seed=1)
    torch.manual_seed(0)
    config = {**SMALL, "conditions": ("midi", "prompt")}
    model = build_model("codec-lm", config, dataset.info, read.infos)
    given, generate = [], model.generate
    model.generate = lambda *a, **k: given.append(k["conditions"]) or generate(*a, **k)
    paths = writer.write(model, 1)
    assert "no samples" not in capfd.readouterr().err
    about = [json.loads(p.with_suffix(".json").read_text()) for p in paths]
    assert [a["kind"] for a in about] == ["continuation"] * 2 + ["conditioned"] * 2
    assert [a["prompt_seconds"] > 0 for a in about] == [True, True, False, False]
    assert len(given) == 2 and all(set(h) == {"midi", "prompt"} for h in given)
    rows = np.random.default_rng(1).permutation(len(dataset))[:2]
    expected = read.read(Items.whole(rows, dataset.frames))
    for kind in ("midi", "prompt"):
        for n, length in enumerate(expected[kind].lengths.tolist()):
            assert given[1][kind].lengths[n] == length
            found = given[1][kind].values[n, :length]
            assert torch.equal(found, expected[kind].values[n, :length].long())


def make_spoken(folder, dataset):
    """Texts of letters in all cuts of a split but for each seventh, each symbol 40 ms long."""
    rows = make_steps(folder, "text", "valid")
    letters = (chr(0x100 + n) for n in range(39))
    front_end = TextFrontEnd(TextSettings("chars"), SymbolTable.of(letters))
    write_json(folder / "text.json", front_end.info(4.0).to_dict())
    column = Ragged.open(column_path(folder, "text", "valid"), dataset.fingerprint)
    edges = [np.arange(len(row) + 1) * 0.04 for row in rows]
    TextTimes.write(dataset, column, [np.stack([e[:-1], e[1:]], 1) for e in edges])


@pytest.mark.parametrize("kinds", [(), ("midi", "prompt"), ("text",)])
def test_generate_makes_the_same_samples(tokens, tmp_path, kinds):
    folder = shutil.copytree(tokens, tmp_path / "tokens")
    make_steps(folder, "midi", "valid")
    flags = {"sample_count": 2, "sample_temperature": 0.8, "sample_top_k": 9}
    writer, _, dataset = make(folder, tmp_path, **flags)
    torch.manual_seed(0)
    if spoken := "text" in kinds:
        make_spoken(folder, dataset)
    read = ConditionSet.open(dataset, list(kinds), prompt_frames=9, seed=1, aligned=spoken)
    model = build_model("codec-lm", {**SMALL, "conditions": kinds}, dataset.info, read.infos)
    paths = writer.write(model, 7)
    save_model(model, tmp_path / "best.pt", step=7)
    frame = 1 / float(dataset.info.frame_rate)
    words = [
        *("--exp-dir", tmp_path / "best.pt", "--out-dir", tmp_path / "made", "--seed", 1),
        *("--temperature", 0.8, "--top-k", 9, "--min-seconds", frame, "--voice-seconds", 0.5),
        *("--precision", "fp32"),  # as samples of a training are
    ]
    cuts = ["--manifest-dir", folder, "--split", "valid", "--num-prompts", 2]
    continued = [*cuts, "--prompt-seconds", 0.3, "--seconds", 0.3]
    alone = [*cuts, "--prompt-seconds", 0] if kinds else ["--num-samples", 2]
    for more in (continued, [*alone, "--seconds", 0.6]):
        assert rvqlm.bin.generate.main([str(w) for w in [*words, *more]]) == 0
    made = sorted((tmp_path / "made").glob("*.wav"))
    assert [p.name for p in made] == sorted(p.name for p in paths) and len(made) == 4
    timings = {"generation_seconds", "real_time_factor"}
    for path in paths:
        other = tmp_path / "made" / path.name
        assert path.read_bytes() == other.read_bytes()
        mine, its = (read_sample(p) for p in (path, other))
        of_files = {"checkpoint", "command", "precision", "weights", "kernels"}
        assert set(its) - set(mine) == of_files
        assert set(mine) - set(its) == {"temperature", "top_k"}
        common = set(mine) & set(its) - timings
        assert {k: mine[k] for k in common} == {k: its[k] for k in common}
        if spoken:  # known of the prompt, and predicted
            times = [end - begin for _, begin, end in mine["alignment"]]
            known = 8 if mine["prompt_seconds"] else 0
            assert times[:known] == pytest.approx([0.04] * known)
            assert all(time > 0.05 for time in times[known:]) and len(times) > known


def test_ctrl_c_is_not_swallowed_and_the_mode_is_as_it_was(tokens, tmp_path):
    writer, _, dataset = make(tokens, tmp_path)
    model = model_of(dataset).train()
    model._generate = lambda request: (_ for _ in ()).throw(KeyboardInterrupt)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        writer.write(model, 1)
    assert model.training and torch.equal(torch.rand(3), expected)


def test_a_model_that_ends_at_once_still_makes_audio(tokens, tmp_path, capfd):
    writer, log, dataset = make(tokens, tmp_path)
    model = model_of(dataset)
    torch.nn.init.constant_(model.end_head.linear.bias, 1e4)
    paths = writer.write(model, 1)
    log.close()
    assert len(paths) == 2 and "no samples" not in capfd.readouterr().err
    about = [json.loads(p.with_suffix(".json").read_text()) for p in paths]
    frame = 1 / float(dataset.info.frame_rate)
    for sample in about:
        assert sample["stop"] == "eos"
        assert sample["seconds"] - sample["prompt_seconds"] == pytest.approx(frame)


def test_divergence_from_the_data(tokens, tmp_path):
    writer, _, dataset = make(tokens, tmp_path)
    rows = np.random.default_rng(1).permutation(len(dataset))
    values = writer._compare([dataset.read(int(row))[:20] for row in rows[:2]], 1)
    stuck = writer._compare([np.full_like(dataset.read(0)[:20], 3)] * 2, 2)
    data = np.concatenate([dataset.read(i) for i in range(len(dataset))])
    V = dataset.info.codebook_size
    p = np.ones(V)
    p[3] += 40
    q = np.bincount(data[:, 0].astype(int), minlength=V) + 1.0
    p, q = p / p.sum(), q / q.sum()
    assert stuck["kl_from_data"][0] == pytest.approx((p * np.log(p / q)).sum())
    assert stuck["codes_used"] == [1] * dataset.info.num_codebooks and stuck["frames"] == 40
    for level in range(dataset.info.num_codebooks):
        assert 0 <= values["kl_from_data"][level] < stuck["kl_from_data"][level]
        assert stuck["kl_of_recordings"][level] < stuck["kl_from_data"][level]


def test_listening_changes_no_training(tokens, tmp_path):
    weights = []
    for name, more in (("quiet", []), ("sampled", ["--sample-every-steps", "2"])):
        argv = [
            *("--exp-dir", str(tmp_path / name), "--manifest-dir", str(tokens), "--no-mfu"),
            *("--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1"),
            *("--max-duration", "3", "--max-steps", "4", "--dropout", "0.3"),
            *more,
            *(["--sample-seconds", "0.5", "--sample-prompt-seconds", "0.3"] if more else []),
        ]
        assert trainer.main(argv) == 0
        weights.append(load_checkpoint(tmp_path / name / "latest.pt")["model"])
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    folders = sorted(p.name for p in (tmp_path / "sampled/samples").iterdir())
    assert folders == ["reference", "step-00000002", "step-00000004"]
    assert len(list((tmp_path / "sampled/samples").rglob("*.wav"))) == 8  # 2 and 2, twice
