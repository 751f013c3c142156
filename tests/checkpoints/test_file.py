import os
import resource
import struct
import zipfile

import pytest
import torch
from toy import toy_flags, toy_trainer

from rvqlm.checkpoints import file as module
from rvqlm.checkpoints.file import load_checkpoint, save_checkpoint
from rvqlm.errors import UserError
from rvqlm.files import remove_torn


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("exp")
    toy_trainer(toy_flags(path, max_steps=4)).fit()
    return path


def test_holds_what_the_contract_names(exp_dir):
    state = load_checkpoint(exp_dir / "latest.pt")
    assert {
        *("format", "model", "ema", "model_name", "model_config", "codec", "config", "optimizer"),
        *("schedule", "loader", "rng", "step", "best", "elapsed"),
    } <= state.keys()
    assert state["step"] == 4 and state["model_name"] == "toy"
    assert state["config"]["max-steps"] == 4 and state["config"]["width"] == 12
    assert state["codec"]["codebook_size"] == 11


def test_a_file_cut_anywhere_is_refused_and_another_named(exp_dir, tmp_path):
    data = (exp_dir / "latest.pt").read_bytes()
    latest, best = tmp_path / "latest.pt", tmp_path / "best.pt"
    best.write_bytes(data)
    with zipfile.ZipFile(best) as file:
        parts = [info.header_offset for info in file.infolist()]
        table = file.start_dir
    cuts = {0, 1, 3, 4, len(data) - 23, len(data) - 22, len(data) - 21, len(data) - 1}
    cuts |= {p + d for p in [*parts, table] for d in (-1, 0, 1, 29, 31) if p + d >= 0}
    cuts |= {int(x) for x in torch.linspace(0, len(data) - 1, 50)}
    for cut in sorted(cuts):
        latest.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"latest\.pt: damaged.*best\.pt is intact") as e:
            load_checkpoint(latest)
        assert "\n" not in str(e.value)
        assert ("empty" if not cut else "cut short" if cut > 3 else "not a") in str(e.value)


def test_a_flipped_bit_is_refused_or_changes_nothing(exp_dir, tmp_path):
    """In values each is refused; one in the padding between them may be loaded, as it was."""
    data, good = (exp_dir / "best.pt").read_bytes(), load_checkpoint(exp_dir / "best.pt")
    path = tmp_path / "best.pt"
    with zipfile.ZipFile(exp_dir / "best.pt") as file:
        values = {}
        for part in file.infolist():  # header, name, padding, values
            name, padding = struct.unpack_from("<HH", data, part.header_offset + 26)
            values[part] = part.header_offset + 30 + name + padding
            assert data[values[part] :].startswith(file.read(part))
        table = file.start_dir
    spots = [(start + n % i.file_size, n % 8) for i, start in values.items() for n in (0, 7, 500)]
    certain = len(spots)
    generator = torch.Generator().manual_seed(0)
    for low, number in ((0, 100), (table, 400)):
        at = torch.randint(low, len(data), (number,), generator=generator)
        spots += zip(at.tolist(), torch.randint(8, (number,), generator=generator).tolist())
    # "directory" in the attributes of a part: zipfile reads it, torch returns arbitrary memory
    spots += [(data.index(b"PK\x01\x02", table + 100) + 38, 4)]
    refused = 0
    for number, (at, bit) in enumerate(spots):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
        try:
            state = load_checkpoint(path)
        except UserError as e:
            assert "damaged" in str(e) and "\n" not in str(e)
            refused += 1
        else:
            assert number >= certain, (at, bit)
            for part in ("model", "ema"):
                assert all(torch.equal(state[part][k], v) for k, v in good[part].items()), (at, bit)
            assert state["config"] == good["config"] and state["step"] == good["step"]
    assert certain < refused < len(spots) and certain > 60


def test_the_alternative_is_one_that_loads(exp_dir, tmp_path):
    data = (exp_dir / "latest.pt").read_bytes()
    (tmp_path / "archive").mkdir()
    names = ("archive/step-00000001-20260101-000000.pt", "best.pt", "latest.pt")
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))

    def alternative(of):
        with pytest.raises(UserError) as e:
            load_checkpoint(tmp_path / of)
        return str(e.value).partition("; ")[2]

    for name in ("latest.pt", "best.pt"):
        path = tmp_path / name
        stat = path.stat()
        path.write_bytes(data[:-9000])
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        instead = {"latest.pt": "best.pt"}.get(name, names[0])
        assert alternative(name) == f"{tmp_path / instead} is intact: give that one"
    (tmp_path / names[0]).write_bytes(b"")
    assert alternative(names[0]) == "no other checkpoint there is intact"


def test_mapped_tensors_are_the_same(exp_dir):
    mapped, read = (load_checkpoint(exp_dir / "latest.pt", mapped=m) for m in (True, False))
    assert all(torch.equal(mapped["model"][k], v) for k, v in read["model"].items())


def test_foreign_files(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match=r"x\.pt: no checkpoint there"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(UserError, match=r"x\.pt: damaged, or not a checkpoint"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match=r"not a checkpoint of rvqlm trainer \(no model"):
        load_checkpoint(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(UserError, match="not a checkpoint of rvqlm trainer"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_file_does_not_run(tmp_path, capsys):
    torch.save({"format": 1, "model": Evil()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    assert "code ran" not in capsys.readouterr().out


def test_other_format(exp_dir, tmp_path):
    state = load_checkpoint(exp_dir / "latest.pt")
    torch.save(state | {"format": 99}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="format 99, this version reads 3"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_crash_between_write_and_rename_leaves_the_one_before(exp_dir, tmp_path):
    before = load_checkpoint(exp_dir / "latest.pt")
    save_checkpoint(before, tmp_path / "latest.pt")
    child = os.fork()
    if not child:
        os.replace = lambda *paths: os._exit(9)
        save_checkpoint({**before, "step": 5}, tmp_path / "latest.pt")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(tmp_path.iterdir())) == 2  # the new one, whole, beside the old one
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 4
    remove_torn(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["latest.pt"]


def test_full_disk_is_one_line_and_keeps_the_one_before(exp_dir, tmp_path):
    path = tmp_path / "latest.pt"
    path.write_text("good")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # Python ignores SIGXFSZ: EFBIG
    try:
        with pytest.raises(UserError, match=r"latest\.pt: the checkpoint could not be written"):
            save_checkpoint({"x": torch.zeros(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["latest.pt"]


def test_second_name(tmp_path):
    for value in (1, 2):
        save_checkpoint({"x": value}, tmp_path / "best.pt", also=tmp_path / "latest.pt")
        assert torch.load(tmp_path / "latest.pt")["x"] == value
    save_checkpoint({"x": 3}, tmp_path / "latest.pt")
    assert torch.load(tmp_path / "best.pt")["x"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "latest.pt"]


def test_a_sharded_checkpoint_is_put_together_unless_its_parts_are_wanted(
    exp_dir, tmp_path, monkeypatch
):
    whole = load_checkpoint(exp_dir / "latest.pt")
    path = tmp_path / "latest.pt"
    rest = {k: v for k, v in whole.items() if k not in ("model", "ema", "optimizer")}
    save_checkpoint({**rest, "sharded": "latest-4.dcp"}, path)
    asked = []

    def read_whole(path, state):
        asked.append(path.parent / state["sharded"])
        return whole

    monkeypatch.setattr(module, "read_whole", read_whole)
    assert load_checkpoint(path) is whole and asked == [tmp_path / "latest-4.dcp"]
    parts = load_checkpoint(path, gather=False)
    assert parts["sharded"] == "latest-4.dcp" and "model" not in parts and len(asked) == 1
