"""`rvqlm recipes`, and that its table is of what there is."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from rvqlm.bin import recipes

EGS = Path(__file__).resolve().parents[2] / "egs"


def test_every_recipe_has_a_row_and_every_row_a_recipe():
    rows = recipes.read_table(recipes.TABLE)
    assert {row["recipe"] for row in rows} == {path.parent.name for path in EGS.glob("*/run.sh")}
    for row in rows:
        assert all(row.values()), row
        script, *options = shlex.split(row["command"])
        text = subprocess.run(
            [EGS.parent / script, "--help"], capture_output=True, text=True
        ).stdout
        assert script.startswith(f"./egs/{row['recipe']}/")
        flags = [word for word in options if word.startswith("--") and " " not in word]
        assert all(f"  {flag} " in text for flag in flags), row


def test_the_terminal_has_the_table(capfd):
    assert recipes.main([]) == 0
    out = capfd.readouterr().out
    assert out.count("\n  command  ./egs/") == len(recipes.read_table(recipes.TABLE))
    assert "](" not in out and "`" not in out
    assert recipes.main(["custom", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert {row["recipe"] for row in found} == {"custom"}
    assert recipes.main(["nothing"]) == 2
    assert "no recipe 'nothing'; there are mini, custom" in capfd.readouterr().err


def test_a_wheel_has_no_recipes(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(recipes, "TABLE", tmp_path / "egs/README.md")
    assert recipes.main([]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "not part of the installed package" in err


@pytest.mark.parametrize("line", ["| a | b |\n|---|---|\n| 1 |\n"])
def test_a_row_with_a_cell_too_few_is_no_row(tmp_path, line):
    (tmp_path / "t.md").write_text(line)
    with pytest.raises(ValueError):
        recipes.read_table(tmp_path / "t.md")
