"""Faults put into copies of healthy trainings are named with their place."""

import gzip
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from token_fixtures import make_tokens

from rvqlm.batch import Batch
from rvqlm.bin import doctor, trainer
from rvqlm.checkpoints.averaging import average_checkpoints
from rvqlm.checkpoints.exported import save_pretrained
from rvqlm.checkpoints.file import load_checkpoint, save_checkpoint
from rvqlm.checkpoints.loading import load_model
from rvqlm.data.index import build_index
from rvqlm.doctor.examine import RULES, examine
from rvqlm.errors import UserError
from rvqlm.training.bad_batch import BadBatch, save_bad_batch

FAMILIES = {
    "codec-lm": ("codec-lm", "--pattern", "parallel", "--head", "depth", "--depth-nhead", "2"),
    "masked": ("masked", "--optimizer", "muon"),
    "valle": ("valle", "--optimizer", "scaled_adam", "--base-lr", "0.045"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment of each family, trained for 20 steps."""
    folder = tmp_path_factory.mktemp("doctor")
    rng = random.Random(0)
    make_tokens(folder / "tokens", [rng.randint(10, 60) for _ in range(30)])
    with gzip.open(folder / "tokens/cuts_train.jsonl.gz") as file:
        lines = file.readlines()
    with gzip.open(folder / "tokens/cuts_valid.jsonl.gz", "wb") as file:
        file.writelines(lines[:5])
    build_index(folder / "tokens", "valid")
    for name, flags in FAMILIES.items():
        argv = ["--exp-dir", str(folder / name), "--manifest-dir", str(folder / "tokens")]
        argv += ["--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1"]
        argv += ["--max-duration", "4", "--num-threads", "1", "--max-steps", "20"]
        argv += ["--schedule", "constant", "--warmup-steps", "2", "--log-every-steps", "1"]
        argv += ["--archive-every-steps", "19", "--hang-minutes", "0", "--no-memory-check"]
        assert trainer.main([*argv, "--model-name", *flags]) == 0
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """Copies the experiment of a family, whose checkpoint a function has changed."""

    def make(damage=None, name="codec-lm"):
        exp = tmp_path / name
        shutil.copytree(trained / name, exp)
        if damage is not None:
            state = torch.load(exp / "latest.pt", weights_only=True)
            damage(state)
            save_checkpoint(state, exp / "latest.pt")
        return exp

    return make


def bad(diagnosis) -> list[str]:
    return [
        f"{f.subject} | {f.where} | {f.what}" for f in diagnosis.findings if f.severity != "note"
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_healthy_training_is_healthy(trained, name, capfd):
    assert doctor.main([str(trained / name)]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1].startswith("healthy") and "ema distance" in out
    diagnosis = examine(trained / name)
    assert bad(diagnosis) == [] and diagnosis.log["train_lines"] == 20
    model, _, state = load_model(trained / name, "latest", use_ema=False)
    assert sum(r["parameters"] for r in diagnosis.modules) == diagnosis.facts["parameters"]
    assert diagnosis.facts["parameters"] == sum(p.numel() for p in model.parameters())
    row = next(r for r in diagnosis.modules if r["module"].endswith("embedding"))
    weights = {k: v for k, v in state["model"].items() if k == f"{row['module']}.weight"}
    weight = next(iter(weights.values()))
    average = state["ema"][f"{row['module']}.weight"]
    assert row["rms"] == pytest.approx(float(weight.square().mean().sqrt()), rel=1e-5)
    assert row["max"] == float(weight.abs().max())
    distance = float((average - weight).norm() / weight.norm())
    assert row["ema_distance"] == pytest.approx(distance, rel=1e-4)


def put(part, name, at, value):
    def damage(state):
        state[part][name].view(-1)[at] = value

    return damage


def moments_of_one(state, number=0):
    return state["optimizer"][0]["state"][number]


def explode(state):
    state["model"]["heads.blocks.1.up.weight"] *= 1e4


def erase_matrix(state):
    state["model"]["heads.blocks.0.up.weight"].zero_()


def other_width(state):
    state["model_config"]["decoder_dim"] = 17


def stray_average(state):
    state["step"], state["validated"] = 101, {}
    for moments in moments_of(state):
        moments["step"].fill_(101)
    state["ema"]["heads.tables"].neg_()


def erase_rows(state):
    state["model"]["embedding.weight"][65 + 7 : 65 + 10] = 0  # level 1, 64 codes and a special


def erase_level(state):
    state["model"]["heads.weight"][2] = 0


def never_updated(state):
    moments_of_one(state)["exp_avg_sq"][0:60] = 0
    state["total_frames"] = 10**6


def cut_off_level(state):
    moments_of_one(state)["exp_avg_sq"][130:194] = 0


def moments_of(state):
    return [m for part in state["optimizer"] for m in part["state"].values()]


def cold_optimizer(state):
    for moments in moments_of(state):
        for key in ("exp_avg", "exp_avg_sq"):
            moments[key].zero_()


def cold_matrix(state):
    moments_of_one(state, 1)["exp_avg"].zero_()
    moments_of_one(state, 1)["exp_avg_sq"].zero_()


def infinite_moment(state):
    moments_of_one(state, 2)["exp_avg_sq"][0, 0] = float("inf")


def negative_moment(state):
    moments_of_one(state, 2)["exp_avg_sq"][0, 0] = -1.0


def lr(value, progress=0.5):
    def damage(state):
        state["schedule"]["progress"] = progress
        for group in state["optimizer"][0]["param_groups"]:
            group["lr"] = value

    return damage


def other_run(state):
    for moments in moments_of(state):
        moments["step"].fill_(50)


def mostly_skipped(state):
    for moments in moments_of(state):
        moments["step"].fill_(5)


def no_optimizer(state):
    state["optimizer"] = None


def other_optimizer(state):
    state["config"]["optimizer"] = "muon"


def lost_tensor(state):
    del state["model"]["heads.norm.weight"]


NAN, INF = float("nan"), float("inf")
QKV = "network.transformer.layers.0.attention.qkv.weight"
UNUSABLE = {"non_finite", "model_not_built"}
FAULTS = [
    (
        "non_finite",
        put("model", QKV, 16 * 3 + 5, NAN),
        f"{QKV}[3, 5] | 1 of 768 values are NaN",
    ),
    (
        "non_finite",
        put("model", "heads.norm.weight", 4, -INF),
        "heads.norm.weight[4] | 1 of 16 values are NaN or infinite",
    ),
    (
        "non_finite",
        put("ema", "end_head.linear.bias", 0, NAN),
        "end_head.linear.bias[0] | 1 of 1 values are NaN",
    ),
    ("exploded", put("model", QKV, 9, 5e4), f"{QKV} | exploded: rms 1.8e+03, largest value 5e+04"),
    ("exploded", explode, "heads.blocks.1.up.weight | exploded"),
    ("untrained", erase_matrix, "heads.blocks.0.up.weight | all zero after 20 steps"),
    (
        "average_far_from_weights",
        stray_average,
        "heads.tables (2.00) | the average is far from the weights",
    ),
    ("dead_rows", erase_rows, "level 1 of embedding.weight: rows 7, 8, 9 | 3 of 64 rows dead"),
    ("dead_level", erase_level, "level 2 of heads.weight | a dead level"),
    ("dead_rows", never_updated, "rows 0, 1, 2, 3, 4 and 55 more | 60 of 64"),
    ("dead_level", cut_off_level, "level 2 of embedding.weight | a dead level: no gradient"),
    ("no_gradient", cold_optimizer, "all tensors | no gradient reached it in 20 steps"),
    ("no_gradient", cold_matrix, f"{QKV} | no gradient reached it in 20 steps"),
    ("damaged_moments", infinite_moment, "attention.out.weight | 1 of 256 values of exp_avg_sq"),
    ("damaged_moments", negative_moment, "attention.out.weight | 1 of 256 values of exp_avg_sq"),
    ("learning_rate", lr(0.0), "step 20 | the learning rate is 0.0"),
    ("learning_rate", lr(NAN), "step 20 | the learning rate is nan"),
    ("steps_made", other_run, "step | it has made 50 steps, the training 20"),
    ("steps_made", mostly_skipped, "step | it has made 5 steps, the training 20"),
    ("no_optimizer_state", no_optimizer, "optimizer | no optimizer state"),
    ("no_optimizer_state", other_optimizer, "optimizer | no optimizer state"),
    ("model_not_built", lost_tensor, 'Missing key(s) in state_dict: "heads.norm.weight"'),
    ("model_not_built", other_width, "no model can be built of its config and weights"),
]


@pytest.mark.parametrize(("rule", "damage", "finding"), FAULTS, ids=[x[0] for x in FAULTS])
def test_faults_are_named_with_their_place(copy, rule, damage, finding):
    diagnosis = examine(copy(damage))
    assert diagnosis.status == (2 if rule in UNUSABLE else 1)
    found = {f.rule: f"{f.where} | {f.what}" for f in diagnosis.findings if f.severity != "note"}
    assert finding in found[rule]
    assert found.keys() == {rule}


def test_a_schedule_at_its_end_and_codes_without_data_are_no_faults(copy):
    def damage(state):
        lr(0.0, progress=1.0)(state)
        moments_of_one(state)["exp_avg_sq"][65:75] = 0

    diagnosis = examine(copy(damage))
    assert diagnosis.status == 0
    said = {f.rule: f"{f.where} | {f.what}" for f in diagnosis.findings}
    assert "the schedule is at its end" in said["learning_rate"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_cut_short(copy, share, capfd):
    exp = copy()
    path = exp / "latest.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    diagnosis = examine(exp)
    assert diagnosis.status == 2
    (finding,) = [f for f in diagnosis.findings if f.severity != "note"]
    assert finding.rule == "does_not_load"
    assert finding.where == str(path) and ("empty" if not share else "cut short") in finding.what
    # the newest that is whole, and the log, are there all the same
    assert "best.pt is intact" in finding.remedy
    assert diagnosis.log["train"]["last_step"] == 20
    assert doctor.main([str(exp)]) == 2 and "UNUSABLE [file]" in capfd.readouterr().out


def test_a_flipped_byte_and_a_checkpoint_that_is_gone(copy):
    exp = copy()
    content = bytearray((exp / "latest.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (exp / "latest.pt").unlink()  # best.pt is a second name of it
    (exp / "latest.pt").write_bytes(content)
    assert any("| damaged: its part" in x or "damaged" in x for x in bad(examine(exp)))
    (exp / "latest.pt").unlink()
    diagnosis = examine(exp)
    assert diagnosis.status == 2 and "latest.pt: no such checkpoint" in bad(diagnosis)[0]
    assert diagnosis.log["train_lines"] == 20


def test_two_checkpoints_of_a_training(trained, copy, capfd):
    exp = trained / "codec-lm"
    earlier = next(exp.glob("archive/*19-*.pt"))
    diagnosis = examine(exp, compare=earlier)
    assert diagnosis.status == 0 and diagnosis.comparison["steps_between"] == 1
    before, after = (load_checkpoint(p)["model"] for p in (earlier, exp / "latest.pt"))
    row = next(r for r in diagnosis.comparison["modules"] if r["module"] == "embedding")
    a, b = (x["embedding.weight"] for x in (before, after))
    assert row["change"] == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-4)

    def damage(state):
        state["step"] = 21
        state["config"]["base-lr"] = 0.5
        for k in state["model"]:
            if k.startswith("network.transformer.layers.0."):
                state["model"][k] = before[k]

    changed = copy(damage)
    diagnosis = examine(changed, compare=earlier)
    (found,) = bad(diagnosis)
    assert [f.rule for f in diagnosis.findings if f.severity != "note"] == ["no_weight_changed"]
    assert found == "comparison | network.transformer.layers.0 | no weight changed in 2 steps"
    assert doctor.main([str(changed), "--compare", str(earlier)]) == 1
    assert "--base-lr: 0.001 -> 0.5" in capfd.readouterr().out
    diagnosis = examine(changed, which=str(earlier), compare=changed)
    assert diagnosis.path == str(earlier) and diagnosis.comparison["step"] == 21
    # of another family
    diagnosis = examine(exp, compare=trained / "masked")
    assert "another_model" in {f.rule for f in diagnosis.findings}

    def another_codec(state):
        state["codec"]["fingerprint"] = "0" * 16

    shutil.rmtree(changed)
    diagnosis = examine(copy(another_codec), compare=earlier)
    assert [f.rule for f in diagnosis.findings if f.severity != "note"] == ["another_codec"]
    (changed / "latest.pt").unlink()
    (changed / "latest.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"latest.pt: damaged.*an empty file"):
        examine(exp, compare=changed)


def test_replay_of_a_skipped_step(copy):
    exp = copy()
    torch.manual_seed(0)
    batch = Batch.from_codes([torch.randint(64, (9, 3)), torch.randint(64, (5, 3))])
    bad = BadBatch(7, 0, 0, "outlier", loss=9.0, grad_norm=3.0, progress=0.3, batches=[batch])
    path = save_bad_batch(exp, bad, keep=3)
    diagnosis = examine(exp, replay=path)
    assert diagnosis.status == 0 and 4.0 < diagnosis.replay["loss"] < 4.6
    assert diagnosis.replay["loss_then"] == 9.0
    (found,) = [f for f in diagnosis.findings if f.subject == "replay"]
    assert (found.rule, found.where) == ("finite_replay", "step 7, rank 0")
    # wrong codes, weights whose products overflow, and weights that hold NaN
    wrong = Batch.from_codes([torch.full((9, 3), 64)])
    path = save_bad_batch(exp, replace(bad, step=8, batches=[wrong]), keep=3)
    found = {f.rule: f for f in examine(exp, replay=path).findings if f.subject == "replay"}
    assert found.keys() == {"ids_out_of_range", "error_in_replay"}
    assert "64 at item 0" in found["ids_out_of_range"].what

    def weight(value):
        state = load_checkpoint(exp / "latest.pt")
        state["model"]["heads.blocks.0.up.weight"].fill_(value)
        save_checkpoint(state, exp / "latest.pt")
        path = save_bad_batch(exp, bad, keep=3)
        return {f.rule: f for f in examine(exp, replay=path).findings if f.subject == "replay"}

    found = weight(1e38)
    assert found["first_non_finite_value"].where.startswith("heads.blocks.0")
    found = weight(NAN)
    assert found["first_non_finite_value"].where.startswith("heads.blocks.0.up")
    assert "first_non_finite_gradient" in found


def test_exported_models_and_means_have_no_optimizer_to_miss(trained, tmp_path):
    exp = trained / "codec-lm"
    model, _, state = load_model(exp, "latest")
    save_pretrained(model, tmp_path / "out", state, averaged=True)
    diagnosis = examine(tmp_path / "out")
    assert diagnosis.status == 0 and len(diagnosis.modules) > 3
    average_checkpoints([exp / "latest.pt", *exp.glob("archive/*.pt")], tmp_path / "average.pt")
    assert examine(tmp_path / "average.pt").status == 0
    # a replay runs on the mean, not on the weights that a new model begins with
    batch = Batch.from_codes([torch.randint(64, (9, 3))])
    bad = BadBatch(7, 0, 0, "outlier", loss=9.0, grad_norm=3.0, progress=0.3, batches=[batch])
    bad = save_bad_batch(tmp_path, bad, keep=3)
    state = load_checkpoint(exp / "latest.pt")
    state["model"] = load_checkpoint(tmp_path / "average.pt")["model"]
    save_checkpoint(state, tmp_path / "same.pt")
    losses = [examine(tmp_path / f, replay=bad).replay["loss"] for f in ("average.pt", "same.pt")]
    assert losses[0] == losses[1]
    (tmp_path / "out/model.safetensors").write_bytes(b"nothing")
    assert examine(tmp_path / "out").status == 2


def test_json_and_mistakes(trained, copy, tmp_path, capfd):
    exp = copy(put("model", QKV, 0, INF))
    out = tmp_path / "found.json"
    assert doctor.main([str(exp), "--json", str(out)]) == 2
    found = json.loads(out.read_text(), parse_constant=lambda c: pytest.fail(c))
    assert found["status"] == 2 and found["facts"]["step"] == 20
    assert found["findings"][0]["where"] == f"{QKV}[0, 0]"
    assert {"severity", "subject", "where", "what", "remedy"} < found["findings"][0].keys()
    assert found["findings"][0]["remedy"] in capfd.readouterr().out
    for argv, message in (
        (["nowhere"], "nowhere"),
        ([str(tmp_path)], "latest.pt"),
        ([str(exp), "--replay", "nothing.pt"], "nothing.pt: no such file"),
        ([str(exp), "--compare", "nothing.pt"], "nothing.pt"),
        ([str(exp), "--replay-precision", "bf16"], "means nothing without --replay"),
        ([str(exp / "best.pt"), "--which", "best"], "means nothing with a file"),
        ([str(exp), "--json", str(tmp_path / "no/x.json")], "no folder"),
    ):
        assert doctor.main(argv) == 2
        err = capfd.readouterr().err
        assert message in err and err.count("\n") == 1, err


def test_a_text_file_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pt").write_text("no checkpoint")
    assert "damaged, or not a checkpoint" in bad(examine(tmp_path / "a.pt"))[0]


def test_every_rule_has_a_case():
    cases = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [rule.name for rule in RULES if not re.search(rf"\b{rule.name}\b", cases)] == []
    assert len({rule.name for rule in RULES}) == len(RULES)
