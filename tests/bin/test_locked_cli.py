"""Two commands in one folder: the second is refused in a line, and neither harms the other."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from saved_models import save_model
from token_fixtures import make_tokens

import rvqlm.bin.main
from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.codecs.registry import load_codec
from rvqlm.data.index import build_index
from rvqlm.locks import locked
from rvqlm.models.factory import build_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A token directory of the embedded codec, and a model."""
    folder = tmp_path_factory.mktemp("place")
    info = load_codec("spectral", num_codebooks=2).info
    make_tokens(folder / "tokens", [30, 30, 30], info, speakers=3)
    (folder / "tokens" / "cuts_valid.jsonl.gz").write_bytes(
        (folder / "tokens" / "cuts_train.jsonl.gz").read_bytes()
    )
    build_index(folder / "tokens", "valid")
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1}
    save_model(build_model("codec-lm", config, info), folder / "exp" / "best.pt", 1)
    return folder


COMMANDS = {
    "train": "--exp-dir {out} --manifest-dir tokens --max-steps 1",
    "tokenize": "--input nothing --out-dir {out}",
    "split": "--manifest-dir {out}",
    "index": "--manifest-dir {out}",
    "text": "--manifest-dir {out} --type chars",
    "midi": "--manifest-dir {out} --midi-dir x",
    "pair": "--manifest-dir {out} --source-dir x",
    "audio manifest": "--input x --out-dir {out}",
    "audio loudness": "--input x --out {out}/a.jsonl.gz --target-lufs -23",
    "audio activity": "--input x --out {out}/a.jsonl.gz",
    "audio augment": "--input x --out {out}/a.jsonl.gz --audio-dir y --speeds 1.1",
    "generate": "--exp-dir exp --out-dir {out} --seconds 0.1",
    "grid": "--exp-dir exp --manifest-dir tokens --out-dir {out}",
    "check": "exp --manifest-dir tokens --split valid --out-dir {out}",
    "decode": "--input tokens --out-dir {out}",
}
BESIDE = {  # the folder appears when it is complete
    "export": "--manifest-dir tokens --out-dir {out} --format npy --split train",
    "import": "--input exported --out-dir {out}",
    "npq export": "--manifest-dir tokens --out-dir {out}",
    "export-model": "exp --out {out}",
}


@pytest.mark.parametrize("command", [*COMMANDS, *BESIDE])
def test_every_command_that_writes_a_folder_is_refused(place, command, capsys, monkeypatch):
    monkeypatch.chdir(place)
    if command == "import" and not Path("exported").exists():
        words = BESIDE["export"].format(out="exported").split()
        assert rvqlm.bin.main.main(["export", *words]) == 0
    out, beside = Path("out"), command in BESIDE
    out.mkdir(exist_ok=True)
    words = [*command.split(), *(COMMANDS | BESIDE)[command].format(out=out).split()]
    with locked(out, "rvqlm someone", beside=beside):
        capsys.readouterr()
        assert rvqlm.bin.main.main(words) == 2
        err = capsys.readouterr().err
        assert f"error: {out}: rvqlm someone (host " in err and err.count("\n") == 1
        assert [p.name for p in out.iterdir()] == [] if beside else [".rvqlm.lock"]


def flags(exp_dir, tokens, *more) -> list[str]:
    words = ["--exp-dir", exp_dir, "--manifest-dir", tokens, "--decoder-dim", "16", "--nhead", "2"]
    words += ["--num-decoder-layers", "1", "--num-threads", "1", "--no-mfu", "--max-duration", "4"]
    return [*map(str, words), "--log-every-steps", "1", *more]


def start(*words) -> subprocess.Popen:
    command = [sys.executable, trainer.__file__, *flags(*words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_two_trainings_in_one_folder(place, tmp_path, capsys):
    """Started at the same moment, one trains; killed, it leaves the folder to the next."""
    exp_dir, tokens = tmp_path / "exp", place / "tokens"
    pair = [start(exp_dir, tokens, "--max-steps", "100000") for _ in range(2)]
    while all(p.poll() is None for p in pair):
        time.sleep(0.01)
    loser, winner = sorted(pair, key=lambda p: p.poll() is None)
    err = loser.communicate()[1]
    assert loser.returncode == 2 and err.count("\n") == 1 and "--lock-minutes" in err
    assert f"{exp_dir}: rvqlm train (host " in err and f"process {winner.pid}, since 2" in err
    while not (exp_dir / "latest.pt").exists():
        assert winner.poll() is None
        time.sleep(0.01)
    assert trainer.main(flags(exp_dir, tokens, "--max-steps", "1")) == 2  # a moment later
    assert trainer.main(flags(exp_dir, tokens, "--max-steps", "1", "--dry-run")) == 0
    winner.kill()
    winner.communicate()
    step = load_checkpoint(exp_dir / "latest.pt")["step"]
    capsys.readouterr()
    assert trainer.main(flags(exp_dir, tokens, "--max-steps", str(step + 2))) == 0
    assert "was killed; its lock is taken over" in capsys.readouterr().err
    assert not list(exp_dir.glob(".*"))
    lines = map(json.loads, (exp_dir / "metrics.jsonl").read_text().splitlines())
    steps = [x["step"] for x in lines if x["kind"] == "train"]
    assert steps == list(range(1, step + 3))  # of one training, none twice
    record = json.loads((exp_dir / "run.json").read_text())
    assert [e["outcome"] for e in record["ended"]] == ["killed", "finished"]


def test_a_training_that_waits_continues_what_the_other_left(place, tmp_path, capsys):
    """With its flags, which were not there when it was started."""
    exp_dir, tokens = tmp_path / "exp", place / "tokens"
    other, held, waits = tmp_path / "other", threading.Event(), threading.Event()
    assert trainer.main(flags(other, tokens, "--max-steps", "2", "--dropout", "0.25")) == 0

    def hold():
        with locked(exp_dir, "rvqlm train", make=True):
            held.set()
            waits.wait()
            for file in other.glob("*.*"):
                shutil.copy(file, exp_dir)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    threading.Timer(0.5, waits.set).start()
    words = flags(exp_dir, tokens, "--max-steps", "3", "--lock-minutes", "2")
    assert trainer.main(words) == 0
    thread.join()
    err = capsys.readouterr().err
    assert "waiting up to 2 minutes" in err and f"resumed {exp_dir}/latest.pt: step 2" in err
    state = load_checkpoint(exp_dir / "latest.pt")
    assert state["step"] == 3 and state["config"]["dropout"] == 0.25
