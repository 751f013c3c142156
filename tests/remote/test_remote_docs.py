"""The commands of docs/remote.md, against moto's server."""

import re
import shlex
from pathlib import Path

import pytest
from buckets import as_another_machine
from test_hold import FLAGS, url  # noqa: F401

from rvqlm.bin.main import main
from rvqlm.remote.bucket import Bucket

PAGE = Path(__file__).parents[2] / "docs" / "remote.md"


def test_every_command_runs_on_machines_of_their_own(url, tmp_path, monkeypatch):  # noqa: F811
    block = re.search(r"^```text\n(.*?)^```", PAGE.read_text(), re.M | re.S)[1]
    commands = [shlex.split(line.replace("s3://bucket", url))[1:] for line in block.splitlines()]
    assert [words[0] for words in commands] == ["index", "train", "evaluate", "info"]
    for number, words in enumerate(commands):
        as_another_machine(monkeypatch, tmp_path / f"machine-{number}")
        more = [*FLAGS, "--max-steps", "4"] if words[0] == "train" else []
        assert main([*words, *more]) == 0, words
    found = Bucket(f"{url}/exp").list()
    assert {"latest.pt", "best.pt", "metrics.jsonl", "eval_valid.json"} <= found.keys()


def test_a_page_of_a_hub_is_only_read(monkeypatch, tmp_path, capsys):
    from rvqlm.errors import UserError
    from rvqlm.locks import locked
    from rvqlm.remote import session

    as_another_machine(monkeypatch, tmp_path / "cache")
    Bucket("memory://hub").write("config.json", b"{}")
    folder = Path(session.localize("memory://hub"))
    session._mirrors["memory://hub"].bucket.read_only = True
    (folder / "eval_valid.json").write_text("{}")
    session.finish()
    assert (
        f"memory://hub is only read; what was written is in {folder.parent}"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="can only be read"), locked(folder, "rvqlm train"):
        raise AssertionError
    assert Bucket("memory://hub").list().keys() == {"config.json"}
    as_another_machine(monkeypatch, tmp_path / "no-cache")
