"""Times of symbols: kept to 0.1 ms, and refused beside any other text."""

import numpy as np
import pytest
from text_fixtures import make_texts
from token_fixtures import make_tokens

from rvqlm.data.index import TokenDataset
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.data.text_times import TextTimes
from rvqlm.errors import UserError
from rvqlm.frontends.text_config import TextConfig
from rvqlm.frontends.text_prepare import prepare_text

ROWS = [np.array([3, 1, 4]), np.array([], int), np.array([1, 5])]
TIMES = [np.array([[0.0, 0.12345], [0.12345, 0.2], [0.2, 0.2]]), None, None]


@pytest.fixture
def split(tmp_path):
    make_tokens(tmp_path, [10, 10, 10])
    dataset = TokenDataset.open(tmp_path, "train")
    return dataset, write_text(dataset, ROWS)


def write_text(dataset, rows):
    path = dataset.directory / "text_train.bin"
    write_ragged(path, rows, 1, dataset.fingerprint)
    return Ragged.open(path)


def test_times_are_kept(split):
    TextTimes.write(*split, TIMES)
    times = TextTimes.open(*split)
    np.testing.assert_allclose(times.read(0), TIMES[0], atol=0.51e-4)
    assert times.read(1) is None and times.read(2) is None
    assert times.column.path.name == "text-times_train.bin"


def test_times_of_another_text_are_refused(split):
    dataset, text = split
    with pytest.raises(UserError, match=r"text-times_train.bin not found; run rvqlm align"):
        TextTimes.open(dataset, text)
    TextTimes.write(dataset, text, TIMES)
    other = write_text(dataset, [ROWS[0][::-1], *ROWS[1:]])  # as long, other symbols
    with pytest.raises(UserError, match=r"does not belong to .*text_train.bin; run rvqlm align"):
        TextTimes.open(dataset, other)
    TextTimes.open(dataset, write_text(dataset, ROWS))
    # as long as nothing: a row without its end
    write_ragged(TextTimes.path(dataset.directory, "train"), [TIMES[0][:2].astype(int), [], []], 2,
                 text.mark())  # fmt: skip
    with pytest.raises(UserError, match="rows of other lengths"):
        TextTimes.open(dataset, text)


def test_times_go_when_other_symbols_come(tmp_path):
    make_texts(tmp_path, train=["a Cat", "a hat"])
    config = TextConfig(tmp_path, "chars")
    prepare_text(config)
    dataset = TokenDataset.open(tmp_path, "train")
    text = Ragged.open(tmp_path / "text_train.bin")
    TextTimes.write(dataset, text, [None, None])
    prepare_text(config)  # has nothing to do
    assert len(TextTimes.open(dataset, text).column) == 2
    prepare_text(TextConfig(tmp_path, "chars", lowercase=True))
    assert not TextTimes.path(tmp_path, "train").exists()
