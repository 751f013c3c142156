import pytest
import torch
from toy import ToyLoader, toy_flags, toy_trainer

from rvqlm.errors import UserError
from rvqlm.training.config import LossConfig, check
from rvqlm.training.level_weights import LevelWeights

CPU = torch.device("cpu")


def make(*words, K=4, **flags) -> LevelWeights:
    return LevelWeights(LossConfig(level_weights=words or ("equal",), **flags), K)


def test_equal_is_no_weights_at_all():
    assert make().draw(CPU) is None


def test_given_and_normal_have_a_mean_of_one():
    assert make("1", "2", "3", "2").draw(CPU).tolist() == [0.5, 1.0, 1.5, 1.0]
    normal = make("normal").draw(CPU)
    assert normal.mean().item() == pytest.approx(1) and (normal.diff() < 0).all()
    assert (normal[1] / normal[0]).item() == pytest.approx(torch.tensor(-0.125).exp().item())


def test_auto_follows_the_running_losses():
    weights = make("auto", level_weights_alpha=0.5)
    assert weights.draw(CPU).tolist() == [1.0] * 4  # nothing seen yet
    weights.observe([10.0, 40.0, 90.0, 160.0], [10.0] * 4)  # 1, 4, 9, 16 nats
    assert weights.draw(CPU).tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6])
    for _ in range(400):
        weights.observe([4.0, 4.0, 4.0, 0.0], [1.0, 1.0, 1.0, 0.0])  # the last was not scored
    w = weights.draw(CPU)
    assert w[:3].tolist() == pytest.approx([w[0].item()] * 3, rel=1e-2)
    assert (w[3] / w[0]).item() == pytest.approx(2.0, rel=1e-2)
    again = make("auto", level_weights_alpha=0.5)
    again.load_state_dict(weights.state_dict())
    assert torch.equal(again.draw(CPU), w)


def test_random_levels_are_drawn_by_weight_and_by_torchs_seed():
    weights = make("1", "1", "2", "0", levels_per_batch=1)
    torch.manual_seed(0)
    drawn = torch.stack([weights.draw(CPU) for _ in range(2000)])
    assert (drawn.sum(1) == 1).all() and drawn[:, 3].sum() < 3
    assert drawn.mean(0)[:3].tolist() == pytest.approx([0.25, 0.25, 0.5], abs=0.04)
    torch.manual_seed(0)
    assert torch.equal(weights.draw(CPU), drawn[0])
    assert (make(levels_per_batch=3).draw(CPU) > 0).sum() == 3


def test_phases_by_epoch():
    weights = make(
        level_weights_schedule=("0:normal", "2:4,2,1,1", "3:auto", "5:equal"),
        levels_per_batch_schedule=("0:1", "2:0"),
    )
    seen = {}
    for weights.epoch in range(6):
        drawn = weights.draw(CPU)
        seen[weights.epoch] = None if drawn is None else drawn.tolist()
        if weights.epoch == 2:
            weights.observe([1.0, 4.0, 9.0, 16.0], [1.0] * 4)
    assert sorted(seen[0]) == sorted(seen[1]) == [0, 0, 0, 1]
    assert seen[2] == [2.0, 1.0, 0.5, 0.5] and seen[5] is None
    assert seen[3] == seen[4] == pytest.approx([0.4, 0.8, 1.2, 1.6])


@pytest.mark.parametrize("accum", [1, 3])
def test_a_step_is_of_the_phase_in_which_it_begins(tmp_path, accum):
    flags = toy_flags(tmp_path, num_epochs=3, accum=accum)
    trainer, seen = toy_trainer(flags), []
    step = trainer.train_step

    def watched():
        before = trainer.train.epoch * 4 + trainer.train.step  # batches
        outcome = step()
        assert trainer.level_weights.epoch == trainer.model.epoch
        seen.append((before // 4, trainer.model.epoch))
        return outcome

    trainer.train_step = watched
    trainer.fit()
    assert all(batch_epoch == epoch for batch_epoch, epoch in seen)
    assert [epoch for _, epoch in seen] == {1: [0] * 4 + [1] * 4 + [2] * 4, 3: [0, 0, 1, 2]}[accum]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"level_weights": ("equal", "2")}, "--level-weights equal 2"),
        ({"level_weights": ("-1", "2")}, "--level-weights -1 2"),
        ({"level_weights": ("0", "0")}, "not all 0"),
        ({"level_weights_alpha": 0.3}, "means nothing without --level-weights auto"),
        ({"levels_per_batch": -1}, "--levels-per-batch -1"),
        ({"levels_per_batch_schedule": ("0:-1",)}, "--levels-per-batch-schedule 0:-1: expected"),
        ({"level_weights_schedule": ("0:equal", "1:wrong")}, "level-weights-schedule 1:wrong: exp"),
        (
            {"level_weights_schedule": ("0:auto",), "level_weights": ("auto",)},
            "--level-weights and --level-weights-schedule exclude each other",
        ),
        ({"model_name": "recognizer", "levels_per_batch": 1}, "means nothing for the recognizer"),
    ],
)
def test_mistakes(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        check(toy_flags(tmp_path, max_steps=9, **flags))


def test_numbers_must_fit_the_codec():
    with pytest.raises(UserError, match=r"has 2 numbers for 4 levels.*--levels-per-batch 5"):
        make("1", "2", levels_per_batch=5)
    with pytest.raises(UserError, match="has 3 numbers for 4 levels"):
        make(level_weights_schedule=("0:equal", "9:1,2,3"))


def test_levels_that_were_not_drawn_get_no_gradient(tmp_path):
    from rvqlm.models.codec_lm import CodecLM, CodecLMConfig

    flags = toy_flags(tmp_path, max_steps=1)
    trainer = toy_trainer(flags)
    batch = ToyLoader().make(0, 0)
    model = CodecLM(CodecLMConfig(decoder_dim=16, nhead=2, num_decoder_layers=1), trainer.info)
    out = model(batch, level_weights=torch.tensor([0.0, 1.0]))
    out.loss.backward()
    gradient = model.heads.weight.grad  # (K, V, d)
    assert gradient[0].abs().sum() == 0 and out.normalizer == out.count[1]
