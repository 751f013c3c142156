"""One writer of an experiment in a bucket, on all machines; trainings that move between them."""

import contextlib
import gzip
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from buckets import ENVIRONMENT, as_another_machine
from forked import fork, same_experiment, wait
from test_mirror import upload
from token_fixtures import make_tokens

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.data.index import build_index
from rvqlm.errors import UserError
from rvqlm.locks import identity, locked
from rvqlm.remote import bucket as bucket_module
from rvqlm.remote import hold, session
from rvqlm.remote.bucket import Bucket
from rvqlm.remote.mirror import LOCK, Mirror
from rvqlm.remote.session import localize
from rvqlm.training.distributed import World

FLAGS = [
    *("--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1", "--seed", "3"),
    *("--max-duration", "3", "--num-threads", "1", "--max-steps", "60", "--precision", "fp32"),
    *("--save-every-steps", "3", "--valid-every-steps", "8", "--log-every-steps", "2"),
    *("--archive-every-steps", "6", "--archive-best", "--keep-archived", "2", "--no-mfu"),
    *("--valid-max-batches", "2"),
]


@pytest.fixture
def url(faults, tmp_path):
    make_tokens(tmp_path / "made", [20 + n % 30 for n in range(30)])
    lines = gzip.decompress((tmp_path / "made" / "cuts_train.jsonl.gz").read_bytes())
    few = gzip.compress(b"".join(lines.splitlines(keepends=True)[:5]))
    (tmp_path / "made" / "cuts_valid.jsonl.gz").write_bytes(few)
    build_index(tmp_path / "made", "valid")
    upload(f"{faults.url}/tokens", tmp_path / "made")
    return faults.url


def command(url: str, exp_dir: str) -> list[str]:
    return ["--manifest-dir", f"{url}/tokens", "--exp-dir", exp_dir, *FLAGS]


def objects(url: str) -> dict[str, bytes]:
    bucket = Bucket(url)
    return {name: bucket.read(name) for name in bucket.list()}


def test_a_training_moves_between_machines(url, tmp_path, monkeypatch):
    """Equal, to the bit, to one on a disk that was never interrupted."""
    assert trainer.main(command(url, str(tmp_path / "alone"))) == 0
    before, statuses = None, []
    for machine in ("machine-1", "machine-2"):
        as_another_machine(monkeypatch, tmp_path / machine)
        pid = fork(lambda: trainer.main(command(url, f"{url}/exp")))
        while Bucket(f"{url}/exp").entry("latest.pt") == before:
            time.sleep(0.02)
        os.kill(pid, signal.SIGTERM)
        statuses.append(wait(pid))
        before = Bucket(f"{url}/exp").entry("latest.pt")
    assert statuses[0] == 143 and statuses[1] in (143, 0)
    assert Bucket(f"{url}/exp").entry(LOCK) is None
    as_another_machine(monkeypatch, tmp_path / "machine-1")
    assert trainer.main(command(url, f"{url}/exp")) == 0
    as_another_machine(monkeypatch, tmp_path / "machine-3")
    found = Path(localize(f"{url}/exp"))
    same_experiment(found, tmp_path / "alone")
    steps = [sorted(int(p.name.split("-")[1]) for p in (e / "archive").glob("step-*.pt"))
             for e in (found, tmp_path / "alone")]  # fmt: skip
    assert steps[0] == steps[1] and len(steps[0]) == 2


def test_what_is_recorded_names_the_bucket_and_no_secret(url, capfd):
    assert trainer.main(command(url, f"{url}/exp")) == 0
    found = objects(f"{url}/exp")
    config = yaml.safe_load(found["config.yaml"])
    assert (config["exp-dir"], config["manifest-dir"]) == (f"{url}/exp", f"{url}/tokens")
    assert json.loads(found["run.json"])["data"]["manifest_dir"] == f"{url}/tokens"
    path = Path(localize(f"{url}/exp"), "latest.pt")
    assert load_checkpoint(path)["config"]["manifest-dir"] == f"{url}/tokens"
    said = "".join(capfd.readouterr()).encode()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert not [n for n, data in found.items() if ENVIRONMENT[name].encode() in data]
        assert ENVIRONMENT[name].encode() not in said


def test_a_store_that_is_away_at_the_end(url, faults, capfd, tmp_path, monkeypatch):
    """One line and a status that says so; what was trained is here, and is brought there by the
    next start on this machine."""
    monkeypatch.setattr(bucket_module, "TRIES", 2)
    faults.wanted = lambda method, path: "503" if "latest.pt" in path and method == "PUT" else None
    assert trainer.main(command(url, f"{url}/exp")) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert "not all has reached the bucket" in line and "again on this machine" in line
    faults.wanted = lambda method, path: None
    assert "latest.pt" not in objects(f"{url}/exp") and LOCK not in objects(f"{url}/exp")
    as_another_machine(monkeypatch, tmp_path / "cache")
    assert trainer.main(command(url, f"{url}/exp")) == 0  # it is finished already
    assert "latest.pt" in objects(f"{url}/exp")


# ------------------------------------------------------------------------------------ the lock


def foreign(beat: float = 0.0) -> bytes:
    other = {"host": "elsewhere", "boot": "another", "space": "another"}
    record = {"command": "rvqlm train", "since": "2026-01-01 00:00:00", **identity(), **other}
    return json.dumps({**record, "id": "theirs", "beat": beat}).encode()


@contextlib.contextmanager
def beating(url: str):
    over = threading.Event()

    def beat():
        number = 0
        while not over.wait(0.05):
            Bucket(url).write(LOCK, foreign(number := number + 1))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_another_machine_that_lives_is_named(url, tmp_path):
    folder = Path(localize(f"{url}/exp"))
    Bucket(f"{url}/exp").write(LOCK, foreign())
    with beating(f"{url}/exp"), pytest.raises(UserError) as raised:
        with locked(folder, "rvqlm train", make=True, hint=", or give --lock-minutes to wait"):
            raise AssertionError
    assert f"{url}/exp: rvqlm train (host elsewhere, process" in str(raised.value)
    assert "--lock-minutes" in str(raised.value)
    assert json.loads(Bucket(f"{url}/exp").read(LOCK))["id"] == "theirs"


def test_another_machine_that_is_silent_is_followed(url):
    Bucket(f"{url}/exp").write(LOCK, foreign())
    with locked(localize(f"{url}/exp"), "rvqlm train", make=True):
        assert json.loads(Bucket(f"{url}/exp").read(LOCK))["id"] != "theirs"
    assert Bucket(f"{url}/exp").entry(LOCK) is None


@pytest.mark.parametrize("conditional", [True, False])
def test_of_many_that_begin_at_once_one_holds_it(url, conditional, monkeypatch):
    """With the store's conditional put, and in a store that has none."""
    if not conditional:
        write = Bucket.write
        monkeypatch.setattr(
            Bucket, "write", lambda self, name, data, once=False: write(self, name, data)
        )
        monkeypatch.setattr(hold, "SETTLE_SECONDS", 0.5)
    mirror = Mirror(f"{url}/exp")
    start, inside, refused = threading.Barrier(4), [], []

    def begin() -> None:
        lock = hold._Lock(mirror, LOCK, "rvqlm train")
        start.wait()
        try:
            lock.take(0, "")
            inside.append(lock)
        except UserError as e:
            refused.append(str(e))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not inside:
        time.sleep(0.02)
    over = threading.Event()
    beat = threading.Thread(target=inside[0].beat, args=(over,))
    beat.start()
    for thread in threads:
        thread.join()
    over.set()
    beat.join()
    mirror.close()
    assert len(inside) == 1 and len(refused) == 3
    assert all("is writing there" in line for line in refused)


@pytest.mark.parametrize("fault", ["lost", "503"])
def test_a_lock_whose_answer_is_lost_is_ours(url, faults, fault):
    folder = localize(f"{url}/exp")
    faults.first(1, fault, "PUT", LOCK)
    with locked(folder, "rvqlm train", make=True):
        assert Bucket(f"{url}/exp").entry(LOCK) is not None


def test_who_was_followed_stops_and_writes_nothing_more(url):
    folder, signals = Path(localize(f"{url}/exp")), []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    with pytest.raises(UserError, match="another has taken the lock over"):
        with locked(folder, "rvqlm train", make=True):
            while not signals:
                Bucket(f"{url}/exp").write(LOCK, foreign())
                time.sleep(0.02)
            (folder / "latest.pt").write_bytes(b"mine")
    signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM]
    assert objects(f"{url}/exp") == {LOCK: foreign()}


def test_a_checkpoint_has_its_name_after_all_that_it_names(url, faults):
    folder = Path(localize(f"{url}/exp"))
    with locked(folder, "rvqlm train", make=True):
        (folder / "latest-00000004.dcp").mkdir()
        for name in ("latest.pt", "best.pt", "latest-00000004.dcp/__0_0", "metrics.jsonl"):
            (folder / name).write_bytes(name.encode())
    puts = [path.partition("/exp/")[2] for method, path in faults.requests if method == "PUT"]
    puts = [path.partition("?")[0] for path in puts if path and LOCK not in path]
    assert puts[-2:] == ["best.pt", "latest.pt"] and len(puts) >= 4


def test_what_was_deleted_goes_there_too_but_not_what_a_cache_lost(url, tmp_path, monkeypatch):
    folder = Path(localize(f"{url}/exp"))
    with locked(folder, "rvqlm train", make=True):
        (folder / "a").write_text("a")
        (folder / "b").write_text("b")
    with locked(folder, "rvqlm train"):
        (folder / "a").unlink()
    assert objects(f"{url}/exp") == {"b": b"b"}
    (folder / "b").unlink()  # by whatever tidies disks
    as_another_machine(monkeypatch, tmp_path / "cache")
    with locked(localize(f"{url}/exp"), "rvqlm train"):
        pass
    assert objects(f"{url}/exp") == {"b": b"b"}


def test_ranks_of_other_machines_are_given_what_the_main_rank_has(url, tmp_path, monkeypatch):
    def together(work):
        work()

    as_another_machine(monkeypatch, tmp_path / "machine-2")
    other = session._mirror(f"{url}/exp")
    session._mirrors.clear()  # it stays as it was
    as_another_machine(monkeypatch, tmp_path / "machine-1")
    folder = Path(localize(f"{url}/exp"))
    folder.mkdir()
    (folder / "latest.pt").write_bytes(b"weights")
    session.share(folder / "stage1", True, True, False, together)  # of one machine: nothing to do
    assert Bucket(f"{url}/exp").list() == {}
    session.share(folder / "stage1", True, True, True, together)
    monkeypatch.setitem(session._mirrors, f"{url}/exp", other)
    assert not (other.path / "latest.pt").exists()
    session.share(other.path / "stage1", False, False, True, together)  # its first rank does it
    assert not (other.path / "latest.pt").exists()
    session.share(other.path / "stage1", False, True, True, together)
    assert (other.path / "latest.pt").read_bytes() == b"weights"


def test_shards_of_several_machines_have_no_place_in_a_bucket(url, tmp_path):
    world = World.__new__(World)
    world.rank, world.local_rank, world.size, world.local_size = 0, 0, 4, 2
    world.parallel = "fsdp"
    folder = Path(localize(f"{url}/exp"))
    with pytest.raises(UserError, match=f"^{url}/exp: --parallel fsdp on several machines"):
        world.share(folder)
    world.share(tmp_path)  # of their own file system they may
