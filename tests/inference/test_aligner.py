"""Times from the decisions of a recogniser, and that neither batch nor padding changes them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from token_fixtures import INFO, make_tokens

from rvqlm.data.index import TokenDataset
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.errors import UserError
from rvqlm.frontends.aligned import Labels
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.inference import aligner
from rvqlm.inference.aligner import ByRecognizer, SplitTexts, fingerprint_of, symbol_times
from rvqlm.metrics.viterbi import Path
from rvqlm.models.recognizer import Recognizer, RecognizerConfig


def test_blanks_go_to_neighbours_and_to_pauses():
    #  decision   0  1  2  3  4  5  6  7  8 ... 28 29 of 0.02 s
    #  symbol        a  a     b        _     c        (the space at 7)
    path = Path(np.array([1, 4, 7, 9]), np.array([2, 4, 7, 9]), 0.0)
    near = symbol_times(path, [0, 1, 3], 0.02, 1.0)
    np.testing.assert_allclose(near, [[0, 0.07], [0.07, 0.14], [0.14, 0.14], [0.14, 0.22]])
    path.first[3] = path.last[3] = 28
    far = symbol_times(path, [0, 1, 3], 0.02, 0.59)
    np.testing.assert_allclose(far, [[0, 0.07], [0.07, 0.12], [0.12, 0.54], [0.54, 0.59]])
    nothing = symbol_times(Path(np.array([3]), np.array([4]), 0.0), [], 0.02, 1.0)
    np.testing.assert_allclose(nothing, [[0, 1.0]])  # a comma alone


@pytest.fixture(scope="module")
def recognizer():
    torch.manual_seed(0)
    front_end = TextFrontEnd(TextSettings("chars"), SymbolTable.of(["<space>", *"abc"]))
    shape = RecognizerConfig(decoder_dim=24, nhead=2, num_decoder_layers=1, dropout=0.0)
    model = Recognizer(shape, INFO, {"text": front_end.info(4.0)}).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model, Labels(front_end)


@pytest.fixture
def texts(tmp_path, recognizer):
    """Twelve cuts, one without text, one with more symbols than decisions."""
    rng = np.random.default_rng(0)
    frames = rng.integers(20, 60, 12)
    make_tokens(tmp_path, frames.tolist())
    dataset = TokenDataset.open(tmp_path, "train")
    rows = [rng.integers(1, 5, n // 4) for n in frames]
    rows[3], rows[5] = rows[3][:0], np.full(60, 2)
    write_ragged(tmp_path / "text_train.bin", rows, 1, dataset.fingerprint)
    model, labels = recognizer
    column = Ragged.open(tmp_path / "text_train.bin")
    return SplitTexts(dataset, column, model.conditions["text"], labels)


def test_batches_and_chunks_change_nothing(texts, recognizer, monkeypatch):
    model = recognizer[0]
    found = list(ByRecognizer(model, "here", 120.0).align(texts))
    monkeypatch.setattr(aligner, "CHUNK", 5)
    alone = list(ByRecognizer(model, "here", 0.1).align(texts))
    assert len(found) == len(alone) == len(texts.dataset)
    for row, (one, other) in enumerate(zip(found, alone)):
        assert one.problem == other.problem
        if row in (3, 5):
            assert one.times is None and one.score is None
            continue
        np.testing.assert_array_equal(one.times, other.times)
        assert one.score == pytest.approx(other.score, abs=1e-5) and one.score <= 0
        assert one.times.shape == (texts.column.lengths[row], 2)
        assert (np.diff(one.times.ravel()) >= 0).all() and one.times.min() >= 0
        assert one.times.max() <= texts.dataset.frames[row] / float(INFO.frame_rate)
    frames = texts.dataset.frames[5]
    needed, has = 119, -(-int(frames) // 2) * model.decisions
    assert found[5].problem == f"its symbols need {needed} decisions, its audio has {has}"
    assert found[3].problem == ""


def test_the_own_transcript_scores_highest(texts, recognizer):
    model, labels = recognizer
    codes = torch.from_numpy(texts.dataset.read(0).astype(np.int64))
    own = np.array(model.recognize(codes[None])[0])
    by = ByRecognizer(model, "here", 120.0)
    said, other = by._batch([codes, codes], [own, own[::-1]], labels)
    assert said.score == pytest.approx(0.0, abs=1e-5) and other.score < -0.1


def test_broken_weights_and_other_codecs_and_tables(texts, recognizer):
    model = recognizer[0]
    other = copy.deepcopy(model)
    assert fingerprint_of(other) == fingerprint_of(model)
    torch.nn.init.constant_(other.head.bias, float("nan"))
    assert fingerprint_of(other) != fingerprint_of(model)
    found = list(ByRecognizer(other, "here", 120.0).align(texts))
    assert found[0].problem == "the recogniser's probabilities are not finite"
    info = TextFrontEnd(TextSettings("chars"), SymbolTable.of(["<space>", *"abd"])).info(4.0)
    with pytest.raises(UserError, match=r"symbols differ between here .* and .*same table"):
        next(ByRecognizer(model, "here", 120.0).align(texts._replace(info=info)))
    other.info = replace(INFO, fingerprint="f" * 16)
    with pytest.raises(UserError, match="f" * 16):
        next(ByRecognizer(other, "here", 120.0).align(texts))
