"""Where the recordings in an audio file lie, how long they claim to be, and what is missing.

Files in the world are cut short, glued together, chained and written by programs that did not know
the length yet. Decoders stop somewhere in such files without a word, each somewhere else. So the
bytes are looked at first: `layout_of` finds the recordings in a file, and of each whether its
structure holds. Nothing is decoded, and nothing of a large healthy file is read but its ends if
`quick`.
"""

from __future__ import annotations

import os

from rvqlm.containers import chunks, flac, mpeg, ogg
from rvqlm.containers.layout import Bytes, Layout, before_tags, skip_tags

_SMALL = 1 << 18
"""Bytes of a file that is read whole in a moment."""
_JUNK = 1 << 20
"""Bytes before a recording, at most, that may be something else."""


def layout_of(path: str | os.PathLike, quick: bool = False) -> Layout | None:
    """The recordings in a file; None for what is not understood here: other containers, damage
    beyond the structure, streams side by side.

    quick: believe in the ends of a large file where they agree with each other, and read nothing
    else. What that misses are chained recordings of the very same length; without it they are found
    at the cost of reading the file once, a hundredth of decoding it.
    """
    with Bytes(path) as file:
        start, end = skip_tags(file, 0, file.size), before_tags(file)
        suffix = os.path.splitext(os.fspath(path))[1].lower()
        if end - start < 12:
            return None
        quick = quick and file.size > _SMALL
        for module in (chunks, flac, ogg):
            if module.begins(file, start):
                return module.scan(file, start, end, quick)
            if suffix in module.SUFFIXES:  # what is no tag and no audio may come first
                for magic in module.MAGICS:
                    begin = file.find(magic, start, min(end, start + _JUNK))
                    if begin >= 0 and module.begins(file, begin):
                        return module.scan(file, begin, end, quick)
        if suffix in mpeg.SUFFIXES or mpeg.begins(file, start):
            return mpeg.scan(file, start, end, quick)
    return None
