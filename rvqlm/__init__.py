"""rvqlm: language models over neural-codec tokens, from audio to tokens to new audio."""

from rvqlm.version import __version__  # noqa: F401


def __getattr__(name: str):
    """`rvqlm.from_pretrained` and `rvqlm.stream`, without torch being imported by whoever only
    wants the version."""
    if name == "from_pretrained":
        from rvqlm.checkpoints.loading import from_pretrained

        return from_pretrained
    if name == "stream":
        from rvqlm.inference.stream import stream

        return stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
