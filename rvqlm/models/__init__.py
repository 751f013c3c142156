"""One file a family; `rvqlm.models.factory` knows them by name."""


def __getattr__(name: str):
    """`AudioLM`, without torch being imported by whoever wants something else."""
    if name == "AudioLM":
        from rvqlm.models.audio_lm import AudioLM

        return AudioLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
