"""Files of commit 99ec0c2 mean today what they meant then; those of a format to come are refused.

``make_fixtures.py`` made them; expected.json has what that commit computed from them.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from ranks import flat, same, start

import rvqlm
import rvqlm.bin.main
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.checkpoints.sharded import load_sharded
from rvqlm.data.conditions import load_info
from rvqlm.data.ragged import Ragged
from rvqlm.errors import UserError
from rvqlm.frontends.text import TextFrontEnd

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "fixtures/expected.json").read_text())


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(HERE / "fixtures/99ec0c2.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(autouse=True)
def inside(unpacked, tmp_path, monkeypatch) -> Path:
    """A copy of the files as the working directory: paths in them are relative to it."""
    shutil.copytree(unpacked, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.syspath_prepend(HERE)
    return tmp_path / "old"


def command(*words: str) -> None:
    assert rvqlm.bin.main.main(list(words)) == 0


@pytest.mark.parametrize("name", ["exp", "sharded", "exported"])
def test_a_model_computes_the_same(name):
    from measure import measure

    found, expected = measure(rvqlm.from_pretrained(name)), EXPECTED[name]
    assert found["weights"] == expected["weights"]
    assert found["nats"] == pytest.approx(expected["nats"], rel=1e-5)
    assert found["count"] == expected["count"] and found["codes"] == expected["codes"]


def test_a_checkpoint_has_its_weights_and_averages():
    from measure import digest

    state = load_checkpoint(Path("exp/latest.pt"))
    assert {part: digest(state[part]) for part in ("model", "ema")} == EXPECTED["latest"]


def test_a_training_continues_as_it_would_have():
    before = Path("exp/metrics.jsonl").read_text()
    command("trainer", "--exp-dir", "exp", "--manifest-dir", "tokens", "--max-steps", "8")
    log = Path("exp/metrics.jsonl").read_text()
    assert log.startswith(before)
    found = [json.loads(line) for line in log.removeprefix(before).splitlines()]
    assert len(found) == len(EXPECTED["continued"])
    for row, expected in zip(found, EXPECTED["continued"]):
        assert (row["kind"], row["step"]) == (expected["kind"], expected["step"])
        for key in {"loss", "nats", "grad_norm", "lr", "total_frames", "frames"} & expected.keys():
            assert row[key] == pytest.approx(expected[key], rel=1e-4), key
    assert load_checkpoint(Path("exp/latest.pt"))["step"] == 8
    assert len(json.loads(Path("exp/run.json").read_text())["commands"]) == 2


def test_a_sharded_training_continues_in_one_process():
    before = load_checkpoint(Path("sharded/latest.pt"))
    words = ["--exp-dir", "sharded", "--manifest-dir", "tokens", "--max-steps", "7"]
    command("trainer", *words, "--parallel", "ddp")
    after = load_checkpoint(Path("sharded/latest.pt"))
    assert after["step"] == 7 and after["config"].keys() >= before["config"].keys()
    assert after["model_config"].items() >= before["model_config"].items()
    before |= {name: after[name] for name in ("config", "model_config")}  # there may be new flags
    newer = {"/loader/plan/packing"}  # what the plan had not then
    assert flat(after).keys() - newer == flat(before).keys()
    moments = [k for k in flat(before["optimizer"]) if "exp_avg" in k]
    assert moments and not any(flat(before["optimizer"])[k].isnan().any() for k in moments)


def deal_shards(rank: int, size: int, folder: Path) -> None:
    """Old shards on ranks of today, put together again."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from rvqlm.training.distributed import World

    whole = load_checkpoint(folder / "latest.pt")
    mesh = init_device_mesh("cpu", (size,))
    here = {k: distribute_tensor(v, mesh, [Shard(0)]) for k, v in whole["model"].items()}
    dealt = load_sharded(folder / "latest.pt", {"model": here}, World(parallel="fsdp"))
    same(dealt, whole)


def test_old_shards_are_dealt_to_three_ranks(inside):
    start(3, inside / "sharded", [deal_shards])


def test_evaluation():
    command("evaluate", "--exp-dir", "exp", "--manifest-dir", "tokens", "--num-threads", "1")
    found = json.loads(Path("exp/eval_test.json").read_text())
    assert found["nats"] == pytest.approx(EXPECTED["evaluation"], rel=1e-5)


@pytest.mark.parametrize("name", ["exp", "exported"])
def test_generation(name):
    """The options beside a sample that the old code made give one of the same length. What is drawn
    differs: random numbers come from a counter since. The likeliest codes are those of
    `test_a_model_computes_the_same`."""
    about = json.loads(Path("exp/samples/conditioned-00.json").read_text())
    command(
        "generate", "--exp-dir", name, "--out-dir", "new", "--seed", str(about["seed"]),
        "--text", about["conditions"]["text"], "--voice", about["conditions"]["prompt"],
        "--seconds", str(about["seconds"]), "--no-divide-texts", "--num-threads", "1",
    )  # fmt: skip
    old, new = (soundfile.read(f"{d}/conditioned-00.wav")[0] for d in ("exp/samples", "new"))
    assert old.shape == new.shape and np.isfinite(new).all() and new.any()
    made = json.loads(Path("new/conditioned-00.json").read_text())
    assert made["conditions"] == about["conditions"] and made["seconds"] == about["seconds"]


@pytest.mark.parametrize(
    "words",
    [
        "info exp sharded exported tokens codec.safetensors exp/latest.pt sharded/best.pt",
        "validate --manifest-dir tokens",
        "monitor exp",
        "monitor sharded",
        "report --exp-dir exp --manifest-dir tokens",
        "doctor exp",
        "doctor exported",
        "export-model sharded --out new",
        "average exp/best.pt copy.pt --out exp/average.pt",
        "index --manifest-dir tokens",
    ],
)
def test_commands_read_them(words, capsys):
    shutil.copy("exp/latest.pt", "copy.pt")
    command(*words.split())
    out = capsys.readouterr().out
    assert "damaged" not in out and "problem" not in out.replace("no problems", "")
    if words.startswith("validate"):
        assert "no checksum on record: tokens.json, splits.json, text.json, midi.json" in out


def test_columns_made_again_are_the_same(inside, unpacked):
    """Text, notes and pairs, with the fingerprint of the index that they belong to."""
    Path("tokens/text_prepared.json").unlink()  # else all is up to date
    command("text", "--manifest-dir", "tokens", "--type", "chars", "--unknown", "drop")
    command("midi", "--manifest-dir", "tokens", "--midi-dir", "midi", "--positions", "64")
    command("pair", "--manifest-dir", "tokens", "--source-dir", "accompaniment")
    for path in (unpacked / "tokens").glob("*_*.bin"):
        made = inside / "tokens" / path.name
        if not path.name.startswith("midi_"):
            old, new = (content(folder / "tokens" / path.name) for folder in (unpacked, inside))
            assert (new[0] | old[0], new[1]) == (new[0], old[1]), path.name
            continue
        # times were float32, which put a note at 0.38 s before the step that begins there
        old, new = Ragged.open(path), Ragged.open(made)
        assert old.fingerprint == new.fingerprint and (old.starts == new.starts).all()
        later = new.steps.astype(int) - old.steps
        assert not later[:, [0, 1, 2, 3, 5]].any() and set(later[:, 4]) <= {0, 1}


def content(path: Path) -> tuple[dict, bytes]:
    """Header and columns."""
    data = path.read_bytes()
    size = int.from_bytes(data[8:16], "little")
    return json.loads(data[16 : 16 + size]), data[16 + size :]


def test_symbols_of_texts_stay_what_they_were(inside, capsys):
    before = {p.name: p.read_bytes() for p in Path("tokens").glob("t*")}
    command("text", "--manifest-dir", "tokens", "--type", "chars")
    assert "up to date (of an earlier version" in capsys.readouterr().out
    assert before == {p.name: p.read_bytes() for p in Path("tokens").glob("t*")}
    front_end = TextFrontEnd.from_info(load_info(Path("tokens"), "text", ""))
    assert front_end.decode(front_end.encode("a big dog")) == "a big dog"
    with pytest.raises(UserError, match="no symbol for '“'"):  # cleaned away today
        front_end.encode("“a dog”")


def test_a_token_directory_is_found_complete(inside, unpacked, capsys):
    shard = "tokens/codes/shard-00000.rvq"
    before = (inside / shard).stat().st_mtime_ns
    words = ["--input", "audio.jsonl", "--out-dir", "tokens", "--codec", "codec.safetensors"]
    command("tokenize", *words, "--jobs", "1")
    assert (inside / shard).stat().st_mtime_ns == before


def change(path: str, old: bytes, new: bytes) -> None:
    content = Path(path).read_bytes()
    assert content.startswith(old)
    Path(path).write_bytes(new + content.removeprefix(old))


@pytest.mark.parametrize("name", ["exp", "sharded"])
def test_a_checkpoint_of_a_format_to_come_is_refused(name):
    path = Path(name, "best.pt")
    torch.save(torch.load(path, weights_only=True) | {"format": 4}, path)
    with pytest.raises(UserError, match=r"best\.pt: checkpoint format 4, this version reads 3"):
        rvqlm.from_pretrained(name)


def test_an_exported_model_of_a_format_to_come_is_refused():
    path = Path("exported/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(UserError, match=r"config\.json: format 2, this version reads 1"):
        rvqlm.from_pretrained("exported")


@pytest.mark.parametrize(
    "file, mark", [("index_test.bin", b"RVQIDX"), ("text_test.bin", b"RVQRAG")]
)
def test_tokens_of_a_format_to_come_are_refused(file, mark, capsys):
    change(f"tokens/{file}", mark + b"01", mark + b"02")
    words = ["evaluate", "--exp-dir", "exp", "--manifest-dir", "tokens"]
    assert rvqlm.bin.main.main(words) == 2
    error = capsys.readouterr().err
    assert f"tokens/{file}" in error and error.count("\n") == 1
