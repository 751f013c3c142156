"""One writer in a folder, whatever becomes of the one before."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rvqlm import locks
from rvqlm.errors import UserError
from rvqlm.files import write_text
from rvqlm.locks import NAME, locked

HOLDER = """
import sys, time
from rvqlm.locks import locked
with locked(sys.argv[1], "rvqlm train", make=True):
    print("held", flush=True)
    {then}
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder, then=""):
    """Another process that holds the lock until it is killed at the end, or before."""
    command = [sys.executable, "-c", HOLDER.format(then=then), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def refusal(folder, **options) -> str:
    with pytest.raises(UserError) as e, locked(folder, "rvqlm split", **options):
        pass
    return str(e.value)


def test_a_second_command_is_refused_and_told_by_whom(tmp_path):
    with holder(tmp_path / "exp") as other:
        said = refusal(tmp_path / "exp", hint=" or else")
    assert f"rvqlm train (host {os.uname().nodename}, process {other.pid}, since 2" in said
    assert said.startswith(f"{tmp_path / 'exp'}: ") and said.endswith("stop it or else")
    assert "\n" not in said


def test_nothing_is_left_when_the_block_ends(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b", "x", make=True):
        raise ZeroDivisionError
    with locked(tmp_path / "there", "x"):
        assert [p.name for p in (tmp_path / "there").iterdir()] == [NAME]
        refusal(tmp_path / "there")  # in one process too
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]
    with locked(tmp_path / "a" / "b", "x", make=True):
        (tmp_path / "a" / "b" / "result").touch()
    assert [*(tmp_path / "a" / "b").iterdir()] == [tmp_path / "a" / "b" / "result"]


def test_a_folder_that_appears_when_complete_has_its_lock_beside_it(tmp_path):
    with locked(tmp_path / "new" / "out", "rvqlm export", make=True, beside=True):
        assert not (tmp_path / "new" / "out").exists()
        assert "rvqlm export" in refusal(tmp_path / "new" / "out", beside=True)
        with locked(tmp_path / "new" / "other", "x", beside=True):
            pass
    assert not [*tmp_path.iterdir()]


def test_missing_and_forbidden_folders_are_left_to_the_command(tmp_path, monkeypatch):
    with locked(tmp_path / "missing", "x"):
        assert not (tmp_path / "missing").exists()
    (tmp_path / "file").touch()
    with locked(tmp_path / "file", "x", make=True):
        pass

    def refuse(path, *rest):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with locked(tmp_path, "x"):
        pass


def test_a_killed_command_holds_nothing(tmp_path, capsys):
    with holder(tmp_path) as other:
        other.kill()
        other.wait()
        with locked(tmp_path, "rvqlm split"):
            assert json.loads((tmp_path / NAME).read_text())["command"] == "rvqlm split"
    said = capsys.readouterr().err
    assert f"process {other.pid}" in said and "was killed" in said and said.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_children_hold_nothing(tmp_path):
    """Forked and started ones that outlive their parent, as loaders and converters may."""
    then = (
        "import os, subprocess, signal; a = os.fork() or time.sleep(60); "
        "b = subprocess.Popen(['sleep', '60']).pid; print(a, b, flush=True)"
    )
    with holder(tmp_path, then) as other:
        children = [int(pid) for pid in other.stdout.readline().split()]
        try:
            other.kill()
            other.wait()
            for child in children:
                os.kill(child, 0)  # lives
            with locked(tmp_path, "x"):
                pass
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


def test_a_child_that_leaves_the_block_takes_nothing_away(tmp_path):
    process = os.getpid()
    with contextlib.suppress(KeyError), locked(tmp_path, "x"):
        child = os.fork()
        if child == 0:
            raise KeyError
        os.waitpid(child, 0)
        assert (tmp_path / NAME).exists() and "x (host" in refusal(tmp_path)
    if os.getpid() != process:
        os._exit(0)


def test_waiting(tmp_path, capsys):
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path, "rvqlm train"):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    refusal(tmp_path, wait=0.05)
    threading.Timer(0.1, leave.set).start()
    with locked(tmp_path, "x", wait=60) as waited:
        assert waited
    thread.join()
    with locked(tmp_path, "x", wait=60) as waited:
        assert not waited
    assert "rvqlm train (host" in capsys.readouterr().err


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def flock(request, monkeypatch):
    """Whether the file system has locks."""

    def refuse(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.01)
    if not request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def leave(folder, **fields):
    """The lock of a command that was killed, or that lives where flock does not reach."""
    (folder / NAME).write_text(json.dumps(RECORD | fields).ljust(512))


RECORD = {"command": "rvqlm train", "since": "2026-01-01 00:00:00", **locks.identity()}


def test_of_this_machine_only_processes_that_run_hold_it(tmp_path, flock):
    for of in ({"pid": 2**22 + 1}, {"started": "1"}):  # gone; the number is another's now
        leave(tmp_path, **of)
        with locked(tmp_path, "x"):
            assert json.loads((tmp_path / NAME).read_text())["command"] == "x"
            refusal(tmp_path)
    leave(tmp_path)  # this process
    if flock:  # ours, as it seems, but the lock is free
        with locked(tmp_path, "x"):
            pass
    else:
        assert "rvqlm train (host" in refusal(tmp_path)


def gone(process: subprocess.Popen) -> dict:
    """What the lock of a killed process tells of it, of which the system still knows that it
    was."""
    of = {"pid": process.pid, "started": locks._started(process.pid)}
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return of


@pytest.mark.parametrize("of", [{"pid": 2**22 + 1}, {"started": "1"}, None])
def test_of_a_killed_holder_its_children_are_given_time_to_let_go(tmp_path, monkeypatch, of):
    """They do so first of all, but may be killed or wait for a processor before."""
    with subprocess.Popen(["sleep", "60"]) as process:
        leave(tmp_path, **(of or gone(process)))
        process.kill()
        child = os.open(tmp_path / NAME, os.O_RDWR)
        assert locks.try_lock(child)
        monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.01)
        assert "rvqlm train (host" in refusal(tmp_path)
        monkeypatch.setattr(locks, "SETTLE_SECONDS", 60.0)
        monkeypatch.setattr(time, "sleep", lambda seconds: os.close(child))
        with locked(tmp_path, "x"):
            assert json.loads((tmp_path / NAME).read_text())["command"] == "x"


@pytest.mark.parametrize("of", [{}, {"boot": "another"}, {"space": "pid:[1]"}])
def test_of_a_holder_that_may_live_nothing_is_waited_for(tmp_path, monkeypatch, of):
    with open(tmp_path / NAME, "wb") as file:
        leave(tmp_path, **of)
        assert locks.try_lock(file)
        monkeypatch.setattr(time, "sleep", None)
        assert "rvqlm train (host" in refusal(tmp_path)


@pytest.mark.parametrize("of", [{"boot": "another", "host": "node7"}, {"space": "pid:[1]"}])
def test_of_another_machine_those_that_touch_it(tmp_path, flock, of, monkeypatch, capsys):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.3)
    leave(tmp_path, **of)
    if flock and "space" in of:  # the same kernel: flock reaches into every container
        monkeypatch.setattr(locks, "SILENT_SECONDS", None)
    with locked(tmp_path, "x"):
        pass
    assert "was killed" in capsys.readouterr().err
    if flock and "space" in of:
        return
    monkeypatch.setattr(locks, "SILENT_SECONDS", 60.0)
    leave(tmp_path, **of)
    over = threading.Event()

    def beat():
        while not over.wait(0.05):
            os.utime(tmp_path / NAME)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert "rvqlm train (host" in refusal(tmp_path)
    finally:
        over.set()
        thread.join()


def test_a_holder_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with locked(tmp_path, "x"):
        os.utime(tmp_path / NAME, (1, 1))
        while (tmp_path / NAME).stat().st_mtime == 1:
            time.sleep(0.01)


def test_without_flock_the_last_one_in_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *a: os.lseek(10**6, 0, 0))  # EBADF
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(time, "sleep", lambda seconds: leave(tmp_path, boot="another"))
    assert "rvqlm train (host" in refusal(tmp_path)
    assert json.loads((tmp_path / NAME).read_text()) == RECORD | {"boot": "another"}  # still its


@pytest.mark.parametrize(
    "content",
    ["", "x", "[1]", '{"pid": 1}', '{"command": 1}', json.dumps(RECORD | {"started": None})],
)
def test_a_damaged_lock_of_nobody(tmp_path, flock, content):
    (tmp_path / NAME).write_text(content)
    with locked(tmp_path, "x"):
        refusal(tmp_path)


def test_what_dead_commands_left_half_written_goes(tmp_path):
    dead, folder = 2**22 + 1, tmp_path / "exp"
    (folder / "archive").mkdir(parents=True)
    torn = [folder / f".latest.pt.{dead}.tmp", folder / "archive" / f".a.pt.{os.getpid()}.tmp"]
    torn += [folder / f".best.dcp.{dead}.tmp" / "part"]
    kept = [folder / f".x.json.{os.getppid()}.tmp", folder / ".user.tmp", folder / "latest.pt"]
    older = folder / f".y.json.{os.getppid()}.tmp"  # than the process that has the number now
    kept += [tmp_path / f".other.{dead}.tmp", tmp_path / f".exp.json.{dead}.tmp"]
    for path in (*torn, *kept):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    older.touch()
    os.utime(older, (1, 1))
    with locked(folder, "x"):
        write_text(folder / "new", "")
    assert not any(p.exists() for p in (*torn, torn[2].parent, older)) and all(
        p.exists() for p in kept
    )
    beside = tmp_path / f".out.{dead}.tmp"
    beside.mkdir()
    with locked(tmp_path / "out", "x", beside=True):
        assert not beside.exists() and all(p.exists() for p in kept)


def test_a_full_disk_is_said_of_the_folder(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match=f"No space left.*{tmp_path}"), locked(tmp_path, "x"):
        pass
    assert not [*tmp_path.iterdir()]
