"""Nothing that is read from outside runs code: what could do so is not called anywhere, or in the
way that can't."""

import ast
from pathlib import Path

import pytest

from rvqlm.errors import UserError
from rvqlm.files import parse_yaml

ROOT = Path(__file__).parents[1]
FILES = sorted(p for place in ("rvqlm", "egs", "tools") for p in (ROOT / place).rglob("*.py"))

ONLY = {  # calls with what has to be said in them
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
NEVER = {
    *("eval", "exec", "__import__", "os.system", "os.popen", "yaml.unsafe_load"),
    *("yaml.full_load", "yaml.load_all", "torch.hub.load", "torch.jit.load"),
    *("torch.package.PackageImporter", "pickle.load", "pickle.loads", "pickle.Unpickler"),
}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code"}
KNOWN = {  # each seen to be harmless
    "rvqlm/codecs/native_checkpoint.py": {"pickle"},  # the name of an error
    "rvqlm/checkpoints/contents.py": {"pickle", "pickle._Unpickler"},  # makes records only
    "rvqlm/checkpoints/shards.py": {"FileSystemReader"},  # whose table of contents is ours
    "rvqlm/files.py": {"yaml.load"},  # with a safe loader, as below
}


def name_of(node: ast.expr) -> str:
    """``a.b.c`` as it is written."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} & MODULES
            names = {f"{node.module}.{a.name}" for a in node.names}
            found |= names & {*NEVER, *ONLY, "yaml.load"}  # under a name that is not looked for
        elif isinstance(node, (ast.Attribute, ast.Name)):
            name = name_of(node)
            if name in {*NEVER, "pickle._Unpickler", "yaml.load"}:
                found.add(name)
            if name.endswith("FileSystemReader"):
                found.add("FileSystemReader")
        if isinstance(node, ast.Call):
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            keyword, value = ONLY.get(name := name_of(node.func), (None, None))
            if keyword and given.get(keyword) is not value:
                found.add(name)
            risky = given.keys() & {"shell", "trust_remote_code"}
            found |= {k for k in risky if given[k] is not False}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_may_run_code(path):
    known = KNOWN.get(str(path.relative_to(ROOT)), set())
    assert dangers(ast.parse(path.read_text(encoding="utf-8"))) == known


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from pickle import loads", "import joblib", "eval(x)", "f = exec"),
        *("torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=x)"),
        *("np.load(p)", "np.load(p, allow_pickle=True)", "yaml.load(t, yaml.Loader)"),
        *("subprocess.run(c, shell=True)", "a.from_pretrained(n, trust_remote_code=True)"),
        *("dcp.FileSystemReader(p)", "from torch import load", "os.system(c)"),
    ],
)
def test_they_are_seen(code):
    assert dangers(ast.parse(code))


def test_yaml_makes_plain_values_only(tmp_path):
    marker = tmp_path / "marker"
    for tag in ("object/apply:os.system", "object/new:os.system", "name:os.system", "tuple"):
        with pytest.raises(UserError, match="not YAML"):
            parse_yaml(f"a: !!python/{tag} ['touch {marker}']", "x.yaml")
    assert not marker.exists()
