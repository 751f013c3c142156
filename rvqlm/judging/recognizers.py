"""Recognisers from outside, which no training of ours has touched: word errors."""

from __future__ import annotations

import importlib.metadata
from abc import abstractmethod
from pathlib import Path

import numpy as np

from rvqlm.errors import reason_of
from rvqlm.judging.judge import Clip, Judge, Nothing, NotRun, Options, Score
from rvqlm.judging.weights import given_path
from rvqlm.judging.words import COLUMNS, count_errors, is_english, normalizer_name, require_jiwer

RATE = 16000


class RecognizerJudge(Judge):
    """Word errors of one recogniser. What it heard last is in `heard`."""

    columns = COLUMNS
    languages: str | None = None
    """The only language that it knows; None: several, or that of its weights."""

    def __init__(self, options: Options):
        self.counted_by = require_jiwer()
        self.language = options.language
        self.heard = ""
        self.load(options)

    @abstractmethod
    def load(self, options: Options) -> None:
        """Get ready; sets `model`."""

    @abstractmethod
    def transcribe(self, audio: np.ndarray, language: str) -> str:
        """What is said in (S,) float32 at `RATE`."""

    def score(self, clip: Clip) -> dict[str, Score]:
        self.heard = ""
        text, language = clip.said(), clip.language or self.language
        if not language:
            raise Nothing("the language of its text is not known: give --language")
        if self.languages == "en" and not is_english(language):
            raise Nothing(f"its text is {language}, and this recogniser knows English only")
        self.heard = self.transcribe(clip.sound.at(RATE), language)
        return count_errors(text, self.heard, is_english(language))

    def about(self) -> dict:
        """How errors are counted, for the record."""
        english = is_english(self.language)
        return {"counted_by": self.counted_by, "normalizer": normalizer_name(english)}


class SphinxJudge(RecognizerJudge):
    """CMU Sphinx with the acoustic and language model of US English that its package brings."""

    name, languages = "pocketsphinx", "en"

    def load(self, options: Options) -> None:
        try:
            import pocketsphinx
        except ImportError:
            raise NotRun("pocketsphinx is not installed: pip install 'rvqlm[judges]'") from None
        self.model = f"pocketsphinx-{importlib.metadata.version('pocketsphinx')}-en-us"
        self._decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL", cmn="batch")

    def transcribe(self, audio: np.ndarray, language: str) -> str:
        samples = (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.reinit_feat()  # forgets how the clip before sounded
        self._decoder.start_utt()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""


class WhisperJudge(RecognizerJudge):
    """Whisper, from a folder: of faster-whisper (CTranslate2, model.bin), or of transformers."""

    name = "whisper"

    def load(self, options: Options) -> None:
        folder = given_path(options, self.name, "the folder of a Whisper model")
        fast = (folder / "model.bin").exists()
        self._fast = self._load_fast(folder, options) if fast else None
        if not fast:
            self._load(folder, options)
        self.model = f"{'faster-whisper' if fast else 'whisper'}-{folder.name}"

    def _load_fast(self, folder: Path, options: Options):
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise NotRun("faster-whisper is not installed: pip install faster-whisper") from None
        device = "cuda" if options.device.startswith("cuda") else "cpu"
        return WhisperModel(str(folder), device, compute_type="default", local_files_only=True)

    def _load(self, folder: Path, options: Options) -> None:
        import torch
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        try:
            self._processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
            net = WhisperForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as e:
            raise NotRun(f"--weights whisper={folder}: {reason_of(e)}") from None
        self._net = net.eval().to(options.device)

    def transcribe(self, audio: np.ndarray, language: str) -> str:
        language = language.lower().replace("_", "-").split("-")[0]
        if self._fast is not None:
            segments, _ = self._fast.transcribe(
                audio, language=language, beam_size=5, temperature=0.0,
                condition_on_previous_text=False,
            )  # fmt: skip
            return " ".join(segment.text for segment in segments)
        import torch

        long = len(audio) > 30 * RATE
        inputs = self._processor(
            audio,
            sampling_rate=RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **({"truncation": False, "padding": "longest"} if long else {}),
        ).to(self._net.device)
        multilingual = getattr(self._net.generation_config, "is_multilingual", True)
        told = {"language": language, "task": "transcribe"} if multilingual else {}
        with torch.no_grad():
            ids = self._net.generate(**inputs, **told, do_sample=False, return_timestamps=long)
        return self._processor.batch_decode(ids, skip_special_tokens=True)[0]


class CtcJudge(RecognizerJudge):
    """A CTC recogniser of transformers from a folder: HuBERT (of the LibriSpeech protocol,
    hubert-large-ls960-ft), wav2vec 2.0, WavLM."""

    name = "ctc"

    def load(self, options: Options) -> None:
        folder = given_path(options, self.name, "the folder of a CTC model of transformers")
        import torch
        from transformers import AutoModelForCTC, Wav2Vec2Processor

        try:
            self._processor = Wav2Vec2Processor.from_pretrained(folder, local_files_only=True)
            net = AutoModelForCTC.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False,
                dtype=torch.float32,
            )  # fmt: skip
        except (OSError, ValueError, KeyError) as e:
            raise NotRun(f"--weights ctc={folder}: {reason_of(e)}") from None
        self._net = net.eval().to(options.device)
        self.model = f"ctc-{folder.name}"

    def transcribe(self, audio: np.ndarray, language: str) -> str:
        import torch

        inputs = self._processor(audio, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            logits = self._net(inputs.input_values.to(self._net.device)).logits
        return self._processor.batch_decode(logits.argmax(-1).cpu())[0]
