"""A sharded checkpoint of a stranger: it runs no code, and reads nothing but its own files."""

import builtins
import os
import pickle
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp

from rvqlm.checkpoints.archives import archive
from rvqlm.checkpoints.contents import read_contents
from rvqlm.checkpoints.file import FORMAT, load_checkpoint
from rvqlm.checkpoints.shards import sum_of
from rvqlm.errors import UserError

TENSORS = {
    "model/a": torch.arange(12.0).view(3, 4),
    "model/b": torch.arange(5, dtype=torch.bfloat16),
    "model/c": torch.tensor(7),
    "model/d": torch.zeros(0, 4),
}


class Stranger:
    """A sharded checkpoint that is then changed, checksums and all."""

    def __init__(self, folder):
        self.path, self.directory = folder / "latest.pt", folder / "latest-00000001.dcp"
        folder.mkdir()
        dcp.save(TENSORS, storage_writer=dcp.FileSystemWriter(self.directory), no_dist=True)
        self.contents = self.directory / ".metadata"
        self.state = {
            "format": FORMAT, "model_name": "toy", "model_config": {}, "codec": {},
            "conditions": {}, "step": 1, "optimizer": [], "loader": {},
            "model": {name.split("/")[1]: f"sharded:{name}" for name in TENSORS},
            "sharded": self.directory.name,
        }  # fmt: skip
        self.save()

    def save(self, **changes):
        files = {p.name: sum_of(p) for p in self.directory.iterdir() if p.is_file()}
        torch.save(self.state | {"sharded_files": files} | changes, self.path)

    def change(self, what):
        """Let `what` change torch's `Metadata` in place."""
        metadata = pickle.loads(self.contents.read_bytes())
        what(metadata)
        self.contents.write_bytes(pickle.dumps(metadata))
        self.save()

    def refusal(self) -> str:
        with pytest.raises(UserError) as e:
            load_checkpoint(self.path)
        assert "\n" not in str(e.value) and "give another checkpoint" in str(e.value)
        return str(e.value)


@pytest.fixture
def stranger(tmp_path):
    return Stranger(tmp_path / "exp")


def test_read(stranger):
    found = load_checkpoint(stranger.path)["model"]
    for name, tensor in TENSORS.items():
        other = found[name.split("/")[1]]
        assert torch.equal(other, tensor) and other.dtype == tensor.dtype


class Malice:
    """A pickle of it calls `function`."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def harms(marker):
    code = f"open({str(marker)!r}, 'w')"
    yield Malice(os.system, f"touch {marker}")
    yield Malice(builtins.eval, code)
    yield Malice(builtins.exec, code)
    yield {"state_dict_metadata": Malice(builtins.open, str(marker), "w")}
    yield Malice(torch.load, str(marker))
    # beside what the format knows, and below it
    yield Malice(pickle.loads, pickle.dumps(Malice(builtins.eval, code)))
    yield Malice(getattr, str, "join")


def test_no_code_runs(stranger, tmp_path):
    marker = tmp_path / "marker"
    for harm in harms(marker):
        stranger.contents.write_bytes(pickle.dumps(harm))
        stranger.save()
        assert "has no place there" in stranger.refusal() and not marker.exists()
        for place in ("storage_data", "planner_data", "version"):  # within what is whole else
            other = Stranger(tmp_path / f"exp-{len(list(tmp_path.iterdir()))}")
            other.change(lambda m, place=place, harm=harm: setattr(m, place, harm))
            assert "has no place there" in other.refusal() and not marker.exists()


METADATA = "torch.distributed.checkpoint.metadata"


@pytest.mark.parametrize(
    "content",
    [
        b"cposix\nsystem\n(S'true'\ntR.",
        f"c{METADATA}\nMetadata.__init__\n(tR.".encode(),
        f"c{METADATA}\nMetadata\n(S'x'\ntR}}(S'a'\nS'b'\nub.".encode(),
        f"c{METADATA}\nMetadata\nN}}(S'__init__'\ncbuiltins\nprint\nu\x86b.".encode(),
        b"\x80\x04\x8c\x05torch\x8c\x04load\x93.",  # by the stack
        b"cos\nsystem\n.",
        b"S'a'\nr\xff\xff\xff\x7f.",  # room for 2**31 things remembered
        b"S'a'\n",
        b"",
        b"N.",
        b"\x80\x09.",
    ],
)
def test_pickles_by_hand(stranger, content):
    stranger.contents.write_bytes(content)
    stranger.save()
    stranger.refusal()


def test_a_pickle_changes_nothing_of_ours(stranger):
    """Attributes of a class may be set by a pickle: of one that is thrown away."""
    harm = f"c{METADATA}\nMetadata\n(N}}S'fields'\nI1\nstb."
    stranger.contents.write_bytes(harm.encode())
    stranger.save()
    stranger.refusal()
    assert "fields" not in vars(dcp.metadata.Metadata)
    load_checkpoint(Stranger(stranger.path.parents[1] / "good").path)


def place_of(metadata, name):
    return next(p for i, p in metadata.storage_data.items() if i.fqn == name)


def test_only_its_own_files_are_read(stranger, tmp_path):
    outside = tmp_path / "outside.distcp"
    outside.write_bytes((stranger.directory / "__0_0.distcp").read_bytes())
    for name in ("../../outside.distcp", str(outside), "/etc/passwd", "unlisted", "", 3):

        def elsewhere(metadata, name=name):
            place_of(metadata, "model/a").relative_path = name

        stranger.change(elsewhere)
        assert "its files" in stranger.refusal() or "no text" in stranger.refusal()
    # nor by way of the small file
    stranger.save(sharded_files={".metadata": sum_of(stranger.contents), "../../outside.distcp": [
        *sum_of(outside)]})  # fmt: skip
    assert "does not tell the files" in stranger.refusal()


@pytest.mark.parametrize("name", ["..", ".", "", "../exp/latest-00000001.dcp", "a\\b", "a\0", 3])
def test_the_directory_lies_beside_the_file(stranger, name):
    stranger.save(sharded=name)
    assert "no folder beside it" in stranger.refusal()
    with pytest.raises(UserError, match="no folder beside it"):
        archive(stranger.path.parent, stranger.path, 1, 0)
    stranger.save(sharded=str(stranger.directory))
    assert "no folder beside it" in stranger.refusal()


def test_checksums_cannot_be_left_out(stranger):
    files = {p.name: sum_of(p) for p in stranger.directory.iterdir()}
    content = (stranger.directory / "__0_0.distcp").read_bytes()
    (stranger.directory / "__0_0.distcp").write_bytes(content[:-1] + b"x")
    tables = [{}, None, [], {"__0_0.distcp": files["__0_0.distcp"]}, files | {3: [1, 2]}]
    tables += [files | {"__0_0.distcp": numbers} for numbers in (1, [1], [len(content), "x"])]
    for table in tables:
        stranger.save(sharded_files=table)
        assert "does not tell the files" in stranger.refusal()
    stranger.save(sharded_files={".metadata": files[".metadata"]})
    assert "none of its files" in stranger.refusal()
    stranger.save(sharded_files=files)
    assert "checksum" in stranger.refusal()


def test_nothing_is_larger_than_its_files(stranger):
    def changed(**fields):
        def change(metadata):
            vars(place_of(metadata, "model/a")).update(fields)

        return change

    def grown(metadata):
        tensor = metadata.state_dict_metadata["model/a"]
        tensor.size = torch.Size([10**9, 4])
        tensor.chunks[0].sizes = tensor.size

    def announced(metadata):
        metadata.state_dict_metadata["model/a"].size = torch.Size([10**9, 4])

    def shifted(metadata):
        chunk = metadata.state_dict_metadata["model/b"].chunks[0]
        chunk.sizes = torch.Size([6])

    def untold(metadata):
        for index in [i for i in metadata.storage_data if i.fqn == "model/a"]:
            del metadata.storage_data[index]

    def code(metadata):  # torch would read it with pickle
        metadata.state_dict_metadata["model/a"] = dcp.metadata.BytesStorageMetadata()

    changes = [changed(length=10**9), changed(offset=10**9), changed(offset=-1), grown, announced]
    changes += [
        changed(transform_descriptors=["zstd"]),
        changed(length=True),
        shifted,
        untold,
        code,
    ]
    for n, change in enumerate(changes):
        other = Stranger(stranger.path.parents[1] / f"exp-{n}")
        other.change(change)
        other.refusal()


def test_torn_contents(stranger):
    whole = stranger.contents.read_bytes()
    files = {p.name: sum_of(p) for p in stranger.directory.iterdir()}
    for end in range(0, len(whole), 97):
        stranger.contents.write_bytes(whole[:end])
        with pytest.raises(UserError, match="damaged"):
            read_contents(stranger.contents, files)


def test_a_packed_checkpoint_is_none(stranger, tmp_path):
    """Parts that are packed may be of any size: torch writes none."""
    with zipfile.ZipFile(stranger.path) as old, zipfile.ZipFile(
        tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED
    ) as new:  # fmt: skip
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    with pytest.raises(UserError, match="is not what was written"):
        load_checkpoint(tmp_path / "packed.pt")
