"""Archives: checkpoints of earlier steps in EXP/archive, by step and time, the latest steps kept.

After a return to an earlier step the archives of later ones are of a training that was given up:
with the next archive they move to EXP/archive/abandoned.

An archive is a second name of a file that exists, so it costs no time and its bytes only once the
first name moves on; where the file system has no hard links it is a copy.
"""

from __future__ import annotations

import re
import shutil
from datetime import datetime, timezone
from pathlib import Path

from rvqlm.checkpoints.file import load_checkpoint, save_checkpoint, write_errors
from rvqlm.checkpoints.shards import named_by
from rvqlm.errors import UserError, reason_of
from rvqlm.files import atomic_folder, atomic_write, link_or_copy, remove

_NAME = re.compile(r"(step|best)-(?P<step>\d{8,})-(?P<stamp>\d{8}-\d{6})\.pt")


def archive(
    exp_dir: str | Path, source: str | Path, step: int, keep: int, now: datetime | None = None
) -> Path:
    """Keep the checkpoint `source` as EXP/archive/step-STEP-TIME.pt, or, if it is named best.pt,
    as best-STEP-TIME.pt, and delete those of the same kind beyond `keep`, of the earliest steps.

    :param step: optimizer steps done.
    :param keep: archives to keep, this one included; 0: all.
    :param now: time in the name; the current time in UTC by default, since local time repeats an
        hour every autumn.
    :return: path of the archive.
    :raises UserError: the disk refuses; nothing is deleted then.
    """
    folder, source = Path(exp_dir) / "archive", Path(source)
    kind = "best" if source.name == "best.pt" else "step"
    stamp = (now or datetime.now(timezone.utc)).strftime("%Y%m%d-%H%M%S")
    target = folder / f"{kind}-{step:08d}-{stamp}.pt"
    with write_errors(target):
        folder.mkdir(exist_ok=True)
        _tidy(exp_dir, step)
        shards = _shards_of(source)
        if shards is None:
            atomic_write(target, lambda to: link_or_copy(source, to))
        else:
            _archive_shards(source, shards, target)
        if keep:
            _delete([p for p in archives(exp_dir, kind) if p != target], keep - 1)
    return target


def archives(exp_dir: str | Path, kind: str = "step") -> list[Path]:
    """Archives of an experiment, the earliest step first, of one step the oldest.

    :param kind: ``step``: the periodic ones; ``best``.
    """
    found = (Path(exp_dir) / "archive").glob(f"{kind}-*.pt")
    names = [match for path in found if (match := _NAME.fullmatch(path.name))]
    names.sort(key=lambda match: (int(match["step"]), match["stamp"]))  # clocks may be set back
    return [Path(exp_dir) / "archive" / match[0] for match in names]


def step_of(path: Path) -> int:
    """Of an archive."""
    return int(_NAME.fullmatch(path.name)["step"])


def _tidy(exp_dir: str | Path, step: int) -> None:
    """Move archives of steps after this one, and delete what a kill has left of others."""
    folder = Path(exp_dir) / "archive"
    for path in (*archives(exp_dir, "step"), *archives(exp_dir, "best")):
        if step_of(path) > step:
            (folder / "abandoned").mkdir(exist_ok=True)
            if path.with_suffix(".dcp").is_dir():
                target = folder / "abandoned" / path.with_suffix(".dcp").name
                remove(target)
                path.with_suffix(".dcp").rename(target)
            path.rename(folder / "abandoned" / path.name)
    for shards in folder.glob("*.dcp"):  # its file comes after it
        if _NAME.fullmatch(f"{shards.stem}.pt") and not shards.with_suffix(".pt").exists():
            shutil.rmtree(shards)


def _delete(paths: list[Path], keep: int) -> None:
    for path in paths[: max(0, len(paths) - keep)]:
        path.unlink(missing_ok=True)  # first: no name is left of what is half gone
        if path.with_suffix(".dcp").is_dir():
            shutil.rmtree(path.with_suffix(".dcp"))


def _shards_of(source: Path) -> Path | None:
    """Directory that holds the tensors of a sharded checkpoint; None for one that is whole."""
    try:
        name = named_by(source)
    except (OSError, MemoryError):
        raise
    except Exception as e:  # torch raises half a dozen types for damaged files
        raise UserError(f"{source}: damaged, cannot be archived ({reason_of(e)})") from e
    return source.parent / name if name else None


def _archive_shards(source: Path, shards: Path, target: Path) -> None:
    """The directory first, under the archive's name: the run deletes the one it has."""
    directory = target.with_suffix(".dcp")
    if directory.is_dir():
        shutil.rmtree(directory)
    with atomic_folder(directory) as folder:
        shutil.copytree(shards, folder, copy_function=link_or_copy, dirs_exist_ok=True)
    state = load_checkpoint(source, gather=False)
    save_checkpoint({**state, "sharded": directory.name}, target)
