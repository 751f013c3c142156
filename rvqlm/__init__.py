"""rvqlm: language models over neural-codec tokens, from audio to tokens to new audio."""

__version__ = "0.1.0"
