"""Alignments of others: items of lhotse's supervisions, of MFA's for instance, and TextGrids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rvqlm.data.splits import recording
from rvqlm.errors import UserError
from rvqlm.exchange.names import path_for_id
from rvqlm.exchange.textgrid import read_textgrid
from rvqlm.files import Finite, fits
from rvqlm.frontends.aligned import Item

SUPERVISIONS, SUFFIX = "supervisions", ".TextGrid"


class Supervisions:
    """The `alignment` of the supervisions of cuts (dictionaries of a manifest)."""

    def items(self, cut: dict, tier: str) -> list[Item]:
        """Raises `UserError` where there is none."""
        found, tiers = [], set()
        for supervision in cut.get("supervisions") or ():
            alignment = supervision.get("alignment") or {}
            tiers |= alignment.keys()
            found += map(_item, alignment.get(tier) or ())
        if not found:
            has = f"; they have {', '.join(sorted(tiers))}" if tiers else ""
            raise UserError(f"no alignment {tier!r} in its supervisions{has}")
        return sorted(found, key=lambda item: item.start)


def _item(stored: Sequence | dict) -> Item:
    values = list(stored.values() if isinstance(stored, dict) else stored)[:3]  # lhotse < 1.8
    try:
        label, start, duration = fits(values, tuple[str, Finite, Finite])
    except ValueError as e:
        raise UserError(f"an item of its alignment is damaged ({e})") from None
    return Item(label, start, start + duration)


class TextGrids:
    """A folder of TextGrids, named as cuts, or as recordings, whose times these then are of."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of TextGrids")
        self.folder = folder

    def items(self, cut: dict, tier: str) -> list[Item]:
        """The items of all tiers TIER, TIERs and "SPEAKER - TIERs" that lie in the cut.

        Raises `UserError` where there is no file or no such tier.
        """
        start, path = 0.0, self._path(cut["id"])
        if not path.is_file():
            path = self._path(recording(cut))
            start = (cut.get("custom") or {}).get("recording_start")
            if not path.is_file() or not isinstance(start, (int, float)):
                raise UserError(f"no {cut['id']}.TextGrid in {self.folder}")
            start += cut["start"] - cut["features"]["start"]
        tiers = read_textgrid(path)
        ours = items_of_tier(tiers, tier)
        if ours is None:
            named = ", ".join(tiers) or "none"
            raise UserError(f"no tier {tier}s in {path}; there are {named}")
        moved = (i._replace(start=i.start - start, end=i.end - start) for i in ours)
        inside = (i for i in moved if 0 <= (i.start + i.end) / 2 <= cut["duration"])
        return sorted(inside, key=lambda item: item.start)

    def _path(self, name: str) -> Path:
        return path_for_id(self.folder, name, SUFFIX)


def items_of_tier(tiers: Mapping[str, Sequence[Item]], tier: str) -> list[Item] | None:
    """The items of all tiers TIER, TIERs and "SPEAKER - TIERs" of a TextGrid, in order; None where
    it has no such tier."""
    names = (tier, f"{tier}s")
    ours = [of for name, of in tiers.items() if name.split(" - ")[-1].lower() in names]
    return sorted((i for of in ours for i in of), key=lambda i: i.start) if ours else None


def open_items(given: str) -> Supervisions | TextGrids:
    """The word "supervisions", or a folder of TextGrids."""
    return Supervisions() if given == SUPERVISIONS else TextGrids(Path(given))
