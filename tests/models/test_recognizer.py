"""recognizer: its loss by brute force, what may not change it, and that it learns to recognise."""

import dataclasses
from itertools import groupby, product

import pytest
import torch

from rvqlm.batch import Batch
from rvqlm.checkpoints.file import differing_flags
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.models.recognizer import Recognizer, RecognizerConfig, greedy

K, V = 3, 20
INFO = CodecInfo("toy", "0" * 16, 16000, 320, K, V)
SMALL = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 1, "dropout": 0.0}


def make(symbols=6, rate=4.0, shake=True, **changes):
    torch.manual_seed(0)
    text = {"text": ConditionInfo("text", (symbols,), rate)}
    model = Recognizer(RecognizerConfig(**{**SMALL, **changes}), INFO, text).eval()
    if shake:  # head and residual branches start at zero
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model


def codes(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (n, K), generator=generator) for n in lengths]


def batch_of(items, texts):
    return Batch.from_codes(items, conditions={"text": [torch.tensor(t) for t in texts]})


def collapse(path):
    return [symbol for symbol, _ in groupby(path) if symbol != 0]


@pytest.mark.parametrize("text", [[1, 2], [2], [1, 1], [2, 1, 2]])
def test_loss_is_that_of_all_alignments(text):
    model = make(symbols=3, frames_per_step=1, decisions_per_step=1)
    items = codes(5)
    out = model(batch_of(items, [text]))
    log_p, decisions = model.log_probs(items[0][None], torch.tensor([5]))
    assert decisions.tolist() == [5] and log_p.shape == (1, 5, 3)
    p, total = log_p[0].exp().detach(), 0.0
    for path in product(range(3), repeat=5):
        if collapse(path) == text:
            total = total + torch.stack([p[t, s] for t, s in enumerate(path)]).prod()
    torch.testing.assert_close(
        out.nats, torch.stack([-total.log(), torch.tensor(0.0), torch.tensor(0.0)])
    )
    assert out.count.tolist() == [len(text), 0, 0] and float(out.normalizer) == len(text)


@pytest.mark.parametrize("how", [(1, 1, 0), (2, 2, 5), (2, 3, 0), (3, 1, 3)])
def test_padding_and_batch_composition_change_nothing(how):
    model = make(frames_per_step=how[0], decisions_per_step=how[1], convolution=how[2])
    items, texts = codes(13, 8, 21), [[1, 2, 2], [3], [5, 4, 3, 2]]
    together = model(batch_of(items, texts))
    alone = [model(batch_of([i], [t])) for i, t in zip(items, texts)]
    torch.testing.assert_close(together.loss, sum(o.loss for o in alone))
    torch.testing.assert_close(together.count, sum(o.count for o in alone))
    for name, (value, _) in together.sums.items():
        torch.testing.assert_close(value, sum(o.sums[name][0] for o in alone))
    wrong = sum(o.sums["error_rate"][0] for o in alone)
    assert together.sums["error_rate"][0] == wrong > 0
    batch = batch_of(items, texts)
    transcript = model.recognize(batch.codes, batch.lengths)
    assert transcript == [model.recognize(i[None])[0] for i in items]
    batch.codes[1, 8:] = 7  # whatever stands there
    assert model.recognize(batch.codes, batch.lengths) == transcript


def test_greedy_leaves_out_blanks_and_repetitions():
    paths = [[0, 3, 3, 0, 3, 2, 2, 0], [1, 1, 0, 0, 1, 2, 3, 4]]
    log_p = torch.nn.functional.one_hot(torch.tensor(paths), 6).float().log()
    assert greedy(log_p, torch.tensor([8, 5])) == [[3, 3, 2], [1, 1]]


def test_errors_are_those_of_the_transcript():
    model = make()
    items, texts = codes(30, 18), [[1, 2, 3, 4], [5]]
    transcript = model.recognize(torch.stack([items[0]]))[0]
    assert transcript  # there is something to compare
    right = model(batch_of(items[:1], [transcript]))
    assert right.sums["error_rate"][0] == 0 and right.sums["accuracy"][0][0] == len(transcript)
    out = model(batch_of(items, texts))
    assert out.sums["error_rate"][1] == 5 and out.sums["accuracy"][0][0] <= 5


def test_items_that_cannot_be_written_are_left_out():
    """No text; more symbols than decisions; as many, but two alike, which need a blank between."""
    model = make(frames_per_step=1, decisions_per_step=1)
    good, texts = codes(3, 3, 3, 3), [[1, 2, 3], [1, 2, 3, 4], [1, 1, 2], []]
    out = model(batch_of(good, texts))
    torch.testing.assert_close(out.loss, model(batch_of(good[:1], texts[:1])).loss)
    assert out.count[0] == 3 and [float(v) for v in out.sums["left_out"]] == [3, 4]
    assert float(model(batch_of(good[:1], [[1, 2]])).sums["left_out"][0]) == 0


def test_every_parameter_takes_part_even_when_nothing_is_scored():
    model = make(convolution=3).train()
    out = model(batch_of(codes(4, 4), [[1] * 9, []]))
    out.loss.backward()
    assert out.loss == 0 and out.normalizer == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    model(batch_of(codes(9), [[1, 2]])).loss.backward()
    assert all(p.grad.any() for p in model.parameters())


def test_decisions_follow_the_rate_of_the_text():
    """A slow codec gets several decisions a frame, so that its texts fit."""
    assert make(rate=0.7, frames_per_step=1).decisions == 3
    assert make(rate=2.9).decisions == 2
    assert make(rate=12.0, frames_per_step=4).decisions == 1
    assert make(rate=12.0, decisions_per_step=5).decisions == 5
    slow = make(rate=0.7, frames_per_step=1)
    assert slow(batch_of(codes(4), [[1, 2, 3, 4, 5]])).count[0] == 5


def test_augmentation_hides_what_the_flags_say_and_only_in_training():
    items = torch.stack(codes(*[200] * 40))
    lengths = torch.full((40,), 200)

    def hidden(**changes):
        model = make(shake=False, **changes).train()
        torch.manual_seed(1)
        return model._augment(items, lengths) == model.special  # (B, T, K)

    spans = hidden(mask_share=0.2, mask_frames=10, level_dropout=0.0)
    assert (spans.all(2) == spans.any(2)).all()  # whole frames
    assert 0.14 < spans.float().mean() < 0.2  # spans overlap, so a little less than the share
    runs = [len(list(g)) for row in spans[..., 0].tolist() for v, g in groupby(row) if v]
    assert max(runs) > 4
    levels = hidden(mask_share=0.0, level_dropout=0.5)
    assert (levels == levels[:, :1]).all() and not levels[..., 0].any()
    kept = (~levels[:, 0]).sum(1)
    assert set(kept.tolist()) == {1, 2, K} and 0.3 < (kept < K).float().mean() < 0.7
    assert not hidden(mask_share=0.0, level_dropout=0.0).any()
    model, batch = make(mask_share=0.5), batch_of(codes(30), [[1, 2]])
    assert model(batch).loss == model(batch).loss
    assert model.train()(batch).loss != model(batch).loss


def spoken(texts, seed):
    """Codes of texts: symbol s lasts 3 to 5 frames of codes near s, other ones in finer levels."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *args: torch.randint(*args, generator=generator)  # noqa: E731
    items = []
    for text in texts:
        frames = []
        for s in text:
            n = int(draw(3, 6, (1,)))
            coarse = 3 * s + draw(0, 2, (n,))
            frames.append(torch.stack([coarse, (5 * s + draw(0, 4, (n,))) % V, draw(V, (n,))], 1))
        items.append(torch.cat(frames))
    return items


def random_texts(number, seed):
    """Symbols 1 to 5; none twice in a row, whose beginning nothing would mark."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 5, (number, 11), generator=generator)
    texts = (steps.cumsum(1) % 5 + 1).tolist()
    return [text[: n % 9 + 3] for n, text in enumerate(texts)]


def test_learns_to_hear():
    texts = random_texts(160, seed=3)
    items = spoken(texts, seed=4)
    model = make(shake=False, mask_frames=2, mask_share=0.1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(60):
        at = slice(step % 5 * 32, step % 5 * 32 + 32)
        out = model(batch_of(items[at], texts[at]))
        optimizer.zero_grad()
        (out.loss / out.normalizer).backward()
        optimizer.step()
    fresh = random_texts(40, seed=6)
    out = model.eval()(batch_of(spoken(fresh, seed=5), fresh))
    errors, symbols = out.sums["error_rate"]
    assert symbols == sum(map(len, fresh)) and errors / symbols < 0.05
    assert out.sums["accuracy"][0][0] == symbols - errors  # none has more errors than symbols


def test_it_makes_no_codes_and_takes_no_other_task():
    model = make()
    with pytest.raises(UserError, match="makes no codes"):
        model.generate(codes(5)[0][None], max_new_frames=3)
    with pytest.raises(UserError, match="makes no codes"):
        model.infill(codes(5)[0][None], codes(5)[0][None], 3)
    batch = batch_of(codes(9), [[1, 2]])
    with pytest.raises(UserError, match="--label-smoothing"):
        model(batch, label_smoothing=0.1)
    with pytest.raises(UserError, match="learns from text"):
        model(Batch.from_codes(codes(9)))


def test_all_problems_of_the_flags_in_one_message():
    text = {"text": ConditionInfo("text", (5,), 4.0)}
    config = RecognizerConfig(
        conditions=(),
        fusion="cross",
        condition_dropout=0.1,
        kernel=4,
        frames_per_step=0,
        decisions_per_step=-1,
        mask_share=1.0,
        mask_frames=0,
        level_dropout=2.0,
        convolution=4,
    )
    with pytest.raises(UserError) as error:
        Recognizer(config, INFO, text)
    for flag in (
        "--conditions",
        "--fusion",
        "--condition-dropout",
        "--kernel",
        "--frames-per-step",
        "--decisions-per-step",
        "--mask-share",
        "--mask-frames",
        "--level-dropout",
        "--convolution",
    ):
        assert flag in str(error.value)
    with pytest.raises(UserError, match="no description"):
        Recognizer(RecognizerConfig(), INFO, {})
    with pytest.raises(UserError, match="is given codes alone"):
        Recognizer(RecognizerConfig(num_encoder_layers=2), INFO, text)


def test_prior_on_alignments_fades_and_is_never_measured():
    torch.manual_seed(0)
    info = CodecInfo("toy", "", 16000, 320, 2, 8)
    text = ConditionInfo("text", (5,), durations=(4.0,) * 5, rate=4.0)
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "dropout": 0.0}
    config |= {"mask_share": 0.0, "level_dropout": 0.0}
    with_prior = Recognizer(RecognizerConfig(**config, alignment_prior=0.5), info, {"text": text})
    without = Recognizer(RecognizerConfig(**config, alignment_prior=0.0), info, {"text": text})
    without.load_state_dict(with_prior.state_dict())
    items = [torch.randint(8, (24, 2)), torch.randint(8, (17, 2))]
    batch = Batch.from_codes(
        items, conditions={"text": [torch.tensor([1, 2, 3]), torch.tensor([4])]}
    )
    losses = []
    for progress in (0.0, 0.3, 0.5):
        with_prior.progress = progress
        losses.append(float(with_prior.train()(batch).loss.detach()))
    plain = float(without.train()(batch).loss.detach())
    assert losses[0] > losses[1] > losses[2] == pytest.approx(plain)
    with_prior.progress = 0.0
    with torch.no_grad():
        measured = with_prior.eval()(batch).loss
        torch.testing.assert_close(measured, without.eval()(batch).loss)
    # one symbol in the middle of nothing else: by time alone it is in the middle
    real = torch.tensor([[True]])
    far = with_prior._far_off(torch.tensor([24]), torch.tensor([[2]]), real, 12)[0]
    assert far[:, 0].abs().max() == 0 and int(far[:, 2].argmin()) in (5, 6)
    assert (far[:, [1, 3, 4]] == 30).all()


def test_a_run_of_before_a_flag_goes_on_with_its_default():
    before = dataclasses.asdict(RecognizerConfig())
    del before["convolution"]
    assert not differing_flags(RecognizerConfig(), before)
    assert differing_flags(RecognizerConfig(convolution=9), before) == ["--convolution was 0, is 9"]
