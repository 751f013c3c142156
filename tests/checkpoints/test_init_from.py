"""Weights to begin from: what is taken and what is not, told exactly; and that it trains on."""

from dataclasses import replace

import pytest
import torch
from families import CONDITIONS, INFO, SMALL, make, random_batch
from saved_models import checkpoint_of, save_model
from toy import INFO as TOY_INFO
from toy import ToyConfig, ToyLoader, ToyModel

from rvqlm.checkpoints.exported import save_pretrained
from rvqlm.checkpoints.file import load_checkpoint, save_checkpoint
from rvqlm.checkpoints.init_from import by_module, init_from
from rvqlm.errors import UserError
from rvqlm.models.factory import build_model


def built(info=INFO, **config):
    torch.manual_seed(1)
    return build_model("codec-lm", {**SMALL, **config}, info, CONDITIONS)


def expect(model, weights: dict, report) -> None:
    """The report against what the tensors themselves say, and each taken or left alone."""
    torch.manual_seed(1)
    fresh = build_model(model.name, model.config, model.info, model.conditions).state_dict()
    mine = model.state_dict()
    fits = {k for k, v in fresh.items() if k in weights and weights[k].shape == v.shape}
    assert set(report.matched) == fits and fits
    assert set(report.reshaped) == {k for k in fresh if k in weights} - fits
    assert set(report.missing) == fresh.keys() - weights.keys()
    assert set(report.unexpected) == weights.keys() - fresh.keys()
    assert report.values == sum(mine[k].numel() for k in fits)
    assert report.total == sum(v.numel() for v in mine.values())
    for name, value in mine.items():
        assert torch.equal(value, weights[name] if name in fits else fresh[name]), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(make("delay"), tmp_path_factory.mktemp("exp") / "best.pt", 1234)


CHANGES = {
    "same": {},
    "more layers": {"num_decoder_layers": 4},
    "other width": {"decoder_dim": 48},
    "fewer layers": {"num_decoder_layers": 1},
    "more levels": {"info": replace(INFO, num_codebooks=5, fingerprint="5" * 16)},
    "other head": {"head": "mlp"},
    "text": {"conditions": ("text",)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_takes_what_fits_and_says_what_does_not(saved, change):
    model = built(**CHANGES[change])
    report = init_from(model, saved.parent)
    expect(model, load_checkpoint(saved)["ema"], report)
    lines = "\n".join(report.lines())
    of_model = len(model.state_dict())
    assert f"best.pt (step 1,234): {len(report.matched)} of {of_model} tensors" in lines
    if change == "same":
        assert "100.0 %" in lines and len(report.lines()) == 1
    if change == "more layers":
        assert "new, not in the file: " in lines and "--num-decoder-layers was 2, is 4" in lines
        assert ".2,3 (" in lines
    if change == "fewer layers":
        assert "in the file, not of this model: " in lines and ".1 (" in lines
    if change == "more levels":
        assert "other shape" in lines and "embeddings and heads have to learn anew" in lines
    if change == "other width":
        assert "almost nothing was taken" in lines
    if change != "more levels":  # whose codes the helper does not make
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)
        batch = random_batch(model, [6, 4])
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            losses.append(model(batch).loss)
            losses[-1].backward()
            optimizer.step()
        assert losses[2] < losses[0]


def test_an_exported_model(saved, tmp_path):
    save_pretrained(make("delay"), tmp_path / "exported", checkpoint_of(make("delay"), 55))
    model = built()
    report = init_from(model, tmp_path / "exported")
    expect(model, make("delay").state_dict(), report)
    assert report.step == 55 and not report.remarks


def test_symbols_that_mean_something_else_are_told(tmp_path):
    path = save_model(make("text"), tmp_path / "best.pt")
    other = replace(CONDITIONS["text"], settings={"symbols": list("abcdefghi")})
    model = build_model("codec-lm", {**SMALL, "conditions": ("text",)}, INFO, {"text": other})
    report = init_from(model, path)
    assert len(report.matched) == len(model.state_dict())
    assert "the text was prepared in another way" in "\n".join(report.lines())


@pytest.mark.parametrize("before", [False, True])
def test_told_times_there_and_not_here_or_the_other_way(tmp_path, before):
    config = {**SMALL, "conditions": ("text",)}
    plain, told = (
        build_model("codec-lm", config, INFO, {"text": replace(CONDITIONS["text"], aligned=a)})
        for a in (False, True)
    )
    first, second = (told, plain) if before else (plain, told)
    report = init_from(second, save_model(first, tmp_path / "best.pt", ema=False))
    head = {name for name in told.state_dict() if name.startswith("duration_head.")}
    assert head and set(report.unexpected if before else report.missing) == head
    assert len(report.matched) == len(plain.state_dict())
    said = "that model was told" if before else "has to learn durations"
    assert said in "\n".join(report.lines())


def test_what_fits_nowhere_is_refused(saved, tmp_path):
    toy = ToyModel(ToyConfig())
    with pytest.raises(UserError, match=r"--init-from .*none of the 7 tensors .*the names differ"):
        init_from(toy, saved)
    state = load_checkpoint(saved)
    state["ema"] = {name: torch.ones(2) for name in toy.state_dict()}
    save_checkpoint(state, tmp_path / "shapes.pt")
    with pytest.raises(UserError, match=r"embed\.weight for one is of another shape"):
        init_from(toy, tmp_path / "shapes.pt")
    state = load_checkpoint(saved)
    next(iter(state["ema"].values())).view(-1)[0] = float("inf")
    save_checkpoint(state, tmp_path / "inf.pt")
    model = built()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=r"inf\.pt: \S+ has values that are not finite"):
        init_from(model, tmp_path / "inf.pt")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for path, message in ((tmp_path / "none", "none: no such"), (tmp_path, "no such checkpoint")):
        with pytest.raises(UserError, match=message):
            init_from(model, path)


def test_a_training_begins_where_the_other_ended(tmp_path):
    """By a model that is not of this package's families; of a codec whose codes are others."""
    torch.manual_seed(0)
    first = ToyModel(ToyConfig())
    optimizer = torch.optim.Adam(first.parameters(), 0.03)
    for step in range(40):
        optimizer.zero_grad()
        out = first(ToyLoader().make(0, step))
        (out.loss / out.normalizer).backward()
        optimizer.step()
    path = save_model(first, tmp_path / "best.pt", ema=False)
    second = ToyModel(ToyConfig(), replace(TOY_INFO, fingerprint="f" * 16))
    batch = ToyLoader().make(9, 0)
    with torch.no_grad():
        new = second(batch).loss
        report = init_from(second, path)
        assert torch.equal(second(batch).loss, first(batch).loss) and second(batch).loss < 0.9 * new
    assert report.lines()[-1].startswith("  note: codes of toy meant something else")


def test_names_by_module():
    names = [f"net.{n}.{part}" for n in (0, 1, 3) for part in ("up", "down")]
    assert by_module([*names, "head.weight", "head.bias", "scale"]) == (
        "net.0,1,3 (6 tensors), head (2 tensors), scale"
    )
