"""Exported models: bit for bit what was trained, for every family; plain files; no surprises."""

import json
import shutil
import struct
from dataclasses import replace

import pytest
import torch
from families import ALL, CONDITIONS, INFO, SMALL, K, V, make, random_batch
from saved_models import checkpoint_of, save_model

import rvqlm
from rvqlm.batch import Padded
from rvqlm.bin import export_model
from rvqlm.checkpoints.exported import save_pretrained
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.checkpoints.loading import find_checkpoint, from_pretrained, load_model
from rvqlm.errors import UserError
from rvqlm.files import write_json
from rvqlm.inspection.model import is_model, look_at_pretrained
from rvqlm.models.factory import MODELS, build_model

CASES = (
    *("delay-custom", "depth", "mlp-shared", "linear-shared", "text-cross", "midi"),
    *("source-spread", "text-prompt", "valle", "valle-midi-cross", "masked"),
    *("masked-text-prompt-cross", "recognizer"),
)


def model_of(case: str):
    if case != "recognizer":
        return make(case)
    text = replace(CONDITIONS["text"], durations=tuple(0.1 + n / 7 for n in range(9)))
    torch.manual_seed(0)
    return build_model("recognizer", {**SMALL, "num_decoder_layers": 1}, INFO, {"text": text})


def sampled(model):
    conditions = {
        kind: Padded(
            torch.stack([torch.arange(4) * 3 % s for s in info.sizes], -1)[None],
            torch.tensor([4]),
        )
        for kind, info in model.conditions.items()
    }
    prompt = torch.arange(2 * K).view(1, 2, K) % V
    made = model.generate(prompt, max_frames=4, min_frames=4, conditions=conditions, seed=1)
    return made.codes


@pytest.mark.parametrize("case", CASES)
def test_is_bit_for_bit_what_was_saved(case, tmp_path):
    model = model_of(case).eval()
    again = from_pretrained(save_pretrained(model, tmp_path / "out"))
    assert type(again) is type(model) and not again.training
    assert again.config == model.config and again.info == model.info
    assert again.conditions == model.conditions
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) and v.dtype == theirs[k].dtype for k, v in mine.items())
    batch = random_batch(model, [7, 4])
    with torch.no_grad():
        assert torch.equal(model(batch).loss, again(batch).loss)
    if model.generates:
        assert torch.equal(sampled(model), sampled(again))


def test_every_family_is_among_the_cases():
    assert {ALL[c][0] for c in CASES if c in ALL} | {"recognizer"} == set(MODELS)


def test_plain_files(tmp_path):
    """Every byte of the weights file is a JSON header or a number of a tensor: no pickle."""
    model = make("text")
    out = save_pretrained(model, tmp_path / "out", checkpoint_of(model), averaged=True)
    own = {"config.json", "model.safetensors"}
    others = {"README.md", "codec_info.json", "reference.py", "text.json", "tokens.txt"}
    assert {p.name for p in out.iterdir()} == own | others
    codec = json.loads((out / "codec_info.json").read_text())
    assert codec["fingerprint"] == INFO.fingerprint and codec["frame_rate"] == 50
    assert (out / "tokens.txt").read_text().startswith("<eps> 0\n")
    data = (out / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    spans = sorted(v["data_offsets"] for v in header.values())
    assert [b for b, _ in spans] == [0, *(e for _, e in spans[:-1])]
    assert 8 + size + spans[-1][1] == len(data)
    for name, value in model.state_dict().items():
        begin, end = (8 + size + x for x in header[name]["data_offsets"])
        assert data[begin:end] == value.numpy().tobytes() and header[name]["dtype"] == "F32"
    config = json.loads((out / "config.json").read_text())
    assert config["step"] == 7 and config["best"]["loss"] is None and config["averaged_weights"]
    assert config["config"]["max-duration"] == 7.0 and "ada" not in json.dumps(config)


def test_tied_weights_are_written_once(tmp_path):
    """A table that is also the classifier, in the architecture; and one tensor of two names."""
    tied = make("valle", share_embedding=True)
    again = from_pretrained(save_pretrained(tied, tmp_path / "valle"))
    batch = random_batch(tied, [5, 4])
    tied.eval()
    with torch.no_grad():
        assert torch.equal(tied(batch).loss, again(batch).loss)
    model = make("delay").eval()
    named = {n: p for n, p in model.named_parameters() if n.endswith("norm.weight")}
    (first, one), (second, other) = list(named.items())[:2]
    assert one.shape == other.shape
    model.get_submodule(second.rpartition(".")[0]).weight = one
    out = save_pretrained(model, tmp_path / "two-names")
    plain = save_pretrained(make("delay"), tmp_path / "plain")
    sizes = [(d / "model.safetensors").stat().st_size for d in (plain, out)]
    assert sizes[0] - sizes[1] > 0.5 * 4 * one.numel()
    values = from_pretrained(out).state_dict()
    assert torch.equal(values[first], one) and torch.equal(values[second], one)
    look_at_pretrained(out)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = make("delay")
    return save_pretrained(model, folder / "out", checkpoint_of(model), averaged=True)


def test_stands_for_an_experiment(exported):
    assert find_checkpoint(exported) == exported == find_checkpoint(exported, "latest")
    model, info, state = load_model(exported)
    assert info == INFO and state["step"] == 7 and "model" not in state
    # flags of the training, which evaluate reads, without its paths
    assert state["config"]["condition-prompt-seconds"] == 2.0 and state["config"]["seed"] == 3
    assert "exp-dir" not in state["config"]
    with pytest.raises(UserError, match=r"only the averaged weights were exported.*--raw-weights"):
        load_model(exported, use_ema=False)
    with pytest.raises(UserError, match="a directory, not a checkpoint file"):
        load_checkpoint(exported)
    kind, facts, codec = look_at_pretrained(exported)
    assert kind == "exported model" and codec == INFO and facts["averaged_weights"] is True
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert is_model(exported) and not is_model(exported.parent)


def test_lazy_name_of_the_package(exported):
    assert rvqlm.from_pretrained is from_pretrained
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rvqlm.nothing  # noqa: B018


def test_damage_is_one_line(exported, tmp_path):
    weights, config = (
        (exported / "model.safetensors").read_bytes(),
        (exported / "config.json").read_text(),
    )
    parsed = json.loads(config)
    assert parsed.pop("checksum")
    lacking = {k: v for k, v in parsed.items() if k != "codec"}
    flipped = weights[:-5] + bytes([weights[-5] ^ 1]) + weights[-4:]
    for number, (w, c, message) in enumerate(
        (
            (weights[:-1], config, "model.safetensors: damaged"),
            (flipped, config, "model.safetensors: damaged"),
            (b"", config, "model.safetensors: damaged"),
            (weights, config[:-9], "config.json is damaged .Unterminated string"),
            (weights, "[]", "config.json is damaged .expected object, got array"),
            (weights, '{"model_type": "dac"}', "not a model of rvqlm export-model"),
            (weights, json.dumps(lacking), "object missing required field codec"),
            (weights, json.dumps(parsed | {"format": 9}), "format 9, this version reads 1"),
            (weights, json.dumps(parsed | {"model_name": "x"}), "unknown model 'x'"),
            (weights, json.dumps(parsed | {"codec": []}), "codec: expected object, got array"),
            (
                weights,
                json.dumps(parsed | {"model_config": {"decoder_dim": "wide"}}),
                "cannot be built",
            ),
            (
                weights,
                json.dumps(parsed | {"model_config": {**parsed["model_config"], "head": "mlp"}}),
                "weights don't fit model codec-lm",
            ),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(w)
        (folder / "config.json").write_text(c)
        with pytest.raises(UserError, match=message) as e:
            from_pretrained(folder)
        assert "\n" not in str(e.value) and str(folder) in str(e.value)


def test_a_repository_of_the_hub(exported, tmp_path, monkeypatch):
    """As the hub's client keeps it; nothing is fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("ada/none", "none", "a/b/c", "../x"):
        with pytest.raises(UserError, match="no such") as e:
            from_pretrained(name)
        assert "\n" not in str(e.value)
    repository = tmp_path / "models--ada--small"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    for file in exported.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    model = from_pretrained("ada/small")
    mine = from_pretrained(exported)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), mine.parameters()))
    (snapshot / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json and model\.safetensors"):
        from_pretrained("ada/small")


def test_command(tmp_path, capsys):
    exp = save_model(make("delay"), tmp_path / "exp/best.pt").parent
    save_model(make("delay"), exp / "latest.pt", 9, ema=False)
    for name, flags, part, step in (
        ("average", (), "ema", 7),
        ("raw", ("--raw-weights",), "model", 7),
        ("last", ("--which", "latest"), "model", 9),
        ("file", ("--which", str(exp / "latest.pt")), "model", 9),
    ):
        out = tmp_path / name
        assert export_model.main([str(exp), "--out", str(out), *flags]) == 0
        expected = load_checkpoint(exp / ("best.pt" if step == 7 else "latest.pt"))[part]
        values = from_pretrained(out).state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in values.items())
        words = capsys.readouterr().out
        assert f"step {step}" in words and ("averaged" in words) == (part == "ema")
        assert json.loads((out / "config.json").read_text())["averaged_weights"] == (part == "ema")
    again = tmp_path / "again"  # an exported one likewise
    assert export_model.main([str(tmp_path / "average"), "--out", str(again)]) == 0
    assert (again / "model.safetensors").read_bytes() == (
        tmp_path / "average/model.safetensors"
    ).read_bytes()
    assert json.loads((again / "config.json").read_text())["averaged_weights"]
    capsys.readouterr()
    (tmp_path / "file-there").write_text("x")
    for words, message in (
        ([tmp_path / "none", "--out", tmp_path / "o"], "none: no such experiment"),
        ([exp, "--out", exp], "exp: there is something already"),
        ([exp, "--out", tmp_path / "file-there"], "there is something already"),
        ([exp, "--out", tmp_path / "no/where"], "no directory"),
        ([exp, "--which", "latst", "--out", tmp_path / "o"], "latst: no checkpoint there"),
    ):
        assert export_model.main([str(w) for w in words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    import safetensors.torch

    def refuse(model, path, metadata):
        open(path, "w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_model", refuse)
    with pytest.raises(UserError, match="No space left"):
        save_pretrained(make("delay"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"decoder_dim": 1 << 30},
        {"num_decoder_layers": 1_000_000},
        {"dim_feedforward": 10**12},
        {"decoder_dim": 1 << 19},
    ],
)
def test_a_model_larger_than_its_weights_is_never_made(exported, tmp_path, change):
    """Before any memory is taken: numbers in a file are not believed."""
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["model_config"] |= change
    write_json(path, values, checksum=True)
    with pytest.raises(UserError, match=r"options are of a model much larger than .* weights") as e:
        rvqlm.from_pretrained(folder)
    assert "\n" not in str(e.value)


def test_a_changed_option_is_noticed(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"rope_base": 10000.0', '"rope_base": 30000.0'))
    with pytest.raises(UserError, match=r"config\.json is damaged .*checksum"):
        rvqlm.from_pretrained(folder)
