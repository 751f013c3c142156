"""Pieces of words by sentencepiece (BPE), trained on a stream of texts.

Ids of pieces are those of the symbol table: 0 ``<eps>``, which no text has, 1 ``<unk>`` for
characters that the training texts lack. Texts come normalised (`rvqlm.frontends.text`), so the
model normalises nothing and is some kilobytes small. The same texts give the same model, byte for
byte.

BPE: Sennrich et al., arXiv 1508.07909; the tool: Kudo and Richardson, arXiv 1808.06226.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from rvqlm.errors import UserError
from rvqlm.frontends.symbols import EPS

UNKNOWN = 1
"""Id of ``<unk>``."""


def _library():
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            "text of type bpe needs the package sentencepiece; pip install sentencepiece"
        ) from None
    return sentencepiece


def train_pieces(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a model and return it as its file's bytes.

    Raises `UserError` where `texts` is empty or cannot give `vocab_size` pieces, with the sizes
    that would do.
    """
    library, out = _library(), io.BytesIO()
    failed: list[BaseException] = []

    def stream() -> Iterator[str]:
        try:
            yield from texts
        except BaseException as e:  # the library would turn it into text
            failed.append(e)
            raise

    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=stream(),
            model_writer=out,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=1 << 24,  # longer ones would be left out silently
            pad_id=0,
            pad_piece=EPS,
            unk_id=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as e:
        if failed:
            raise failed[0] from None
        raise UserError(f"--vocab-size {vocab_size}: {_reason(str(e))}") from None
    return out.getvalue()


def _reason(message: str) -> str:
    if few := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return f"the texts have {few[1]} different characters; give more than that"
    if many := re.search(r"value <= (\d+)", message):
        return f"the texts give no more than {many[1]} pieces; give at most that"
    if "sentences_.empty()" in message:
        return "there is no text to train on"
    return f"sentencepiece: {' '.join(message.split())}"


def load_pieces(model: bytes):
    """The `SentencePieceProcessor` of a trained model, texts to ids and back; `UserError` where the
    model is damaged."""
    library = _library()
    try:
        return library.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise UserError("the sentencepiece model is damaged; run rvqlm text again") from None
