"""Imports run downward: the house has floors, and nobody calls up the stairs."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "rvqlm"
FLOORS = (  # from the ground; a file or folder imports from those before it only
    *("version", "errors", "files", "locks", "remote", "hub", "codec_info", "patterns"),
    *("runtime", "slurm", "cores", "condition_info", "cli", "flags", "batch", "dtensors"),
    *("containers", "audio", "codecs", "metrics", "modules", "data", "frontends"),
    *("tokenizing", "exchange", "generation", "models", "checkpoints", "training", "inference"),
    *("judging", "serving", "inspection", "doctor", "reports", "bin"),
)


def imports() -> dict[str, set[str]]:
    """By module, the modules of the package that it imports, at its top or within a function."""
    files = {
        ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rvqlm"):
                names |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                names |= {a.name for a in node.names}
        names = {n.removeprefix("rvqlm.") for n in names if n.startswith("rvqlm.")}
        found[module] = (names & set(files)) - {module}
    return found


def test_the_training_room_imports_no_codec():
    for module, names in imports().items():
        if module.startswith("training."):
            assert not [n for n in names if n.split(".")[0] in ("codecs", "audio")], module


def test_every_import_runs_downward():
    graph = {m: found for m, found in imports().items() if not m.endswith("__init__")}
    rooms = {m: m.split(".")[0] for m in graph}
    assert set(rooms.values()) == set(FLOORS), "a new room needs its floor, and a lost one none"
    upward = [
        f"{a} -> {b}"
        for a, names in graph.items()
        for b in names
        if FLOORS.index(rooms[b]) > FLOORS.index(rooms[a])
    ]
    assert not upward


def test_no_circles():
    graph, done = imports(), set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_no_room_is_crowded():
    crowded = {
        folder.name: count
        for folder in PACKAGE.iterdir()
        if folder.name != "bin" and (count := len([*folder.glob("[!_]*.py")])) > 20
    }
    assert not crowded
