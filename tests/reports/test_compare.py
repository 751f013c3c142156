"""Experiments side by side: what a row is made of, what tells rows apart, what is refused."""

import json
from math import log
from pathlib import Path

import pytest
from experiments import CODEC, add_evaluation, add_sample, add_training, write
from findings import free_running

from rvqlm.errors import UserError
from rvqlm.reports.compare import compare
from rvqlm.reports.compare_table import place, render


def cells(text: str) -> list[dict[str, str]]:
    """Rows of the table by the names of their columns."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in lines)
    assert all(len(row) == len(header) for row in rows)
    return [dict(zip(header, row)) for row in rows]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A delay model and a masked one, complete."""
    delay, masked = tmp_path / "delay", tmp_path / "masked"
    add_training(delay)
    add_evaluation(delay, nats=(2.5, 3.0))
    add_sample(delay, "a", passes=100, generation_seconds=0.5)
    add_sample(delay, "b", passes=50, seconds=2.0, silence_ratio=0.4)
    flags = {"model-name": "masked", "masking": "level", "decoder-dim": 128}
    add_training(masked, **flags)
    add_evaluation(masked, nats=(2.0, 3.5))
    settings = {"temperature": 0.9, "top_k": 200, "top_p": 1.0, "cfg_scale": 1.0, "steps": 16}
    for name in "ab":
        add_sample(masked, name, settings=settings)
    return [delay, masked]


def test_a_row_says_what_the_commands_left(two, tmp_path):
    rows = compare(two)
    assert [r.remarks for r in rows] == [[], []]
    text = render(rows, title="Families", base=tmp_path / "pages")
    assert text.startswith("## Families\n")
    delay, masked = cells(text)
    assert delay["experiment"] == "delay" and delay["parameters"] == "5.80 M"
    assert delay["training, min"] == "3" and delay["steps"] == "20"
    assert delay["frames seen"] == "3,900" and delay["memory, MB"] == "900"
    assert delay["padding"] == "2.50 %"  # 100 of 1,000 + 3,000 cells, not the mean of 10 and 0 %
    assert (
        delay["bits/s"] == f"<= {5.5 / log(2) * 50:,.0f}" and delay["nats per level"] == "2.50 3.00"
    )
    # 150 passes and a second of work for 2 + 1 new seconds
    assert delay["passes per s"] == "50" and delay["s per s"] == "0.333"
    assert delay["silent"] == "30 %" and delay["repeating"] == "10 %"
    assert delay["samples"] == "[1](../delay/samples/a.wav) [2](../delay/samples/b.wav)"
    assert delay["model"] == "codec-lm, pattern delay, d192 x 6"
    assert masked["model"] == "masked, masking level, d128 x 6"
    for words in (
        "no more: 523 bits/s, nats per level 3.50 3.75.",
        "split test, 628 recordings, 136,868 frames, prompt fraction 0: the same",
        "Drawn with temperature 0.9, top-k 200, seed 0; besides: steps 16 (masked).",
        "Codec: toy, fingerprint `0123456789abcdef`, 2 x 64, 50 frames/s, 600 bits/s",
        "Data: 5.1 h of train, 6.0 min of valid.",
        "Machine: Test CPU 3000, 2 cores, torch 2.13.0.",
        "Commit: `feedc0ffee12`.",
    ):
        assert words in text
    assert "`<=`" in text and "`=`" not in text and "NOT made" not in text
    commands = text[text.index("```sh") : text.rindex("```")].splitlines()[1:]
    wanted = [f"rvqlm {c} --exp-dir {e}" for e in two for c in ("trainer", "evaluate", "generate")]
    assert commands == wanted
    assert "samples" not in cells(render(rows, num_samples=0))[0]


def test_exact_and_bounded_figures_are_marked(two):
    add_evaluation(two[0], bound=False)
    text = render(compare(two))
    assert [r["bits/s"][:2] for r in cells(text)] == ["= ", "<="]
    assert "`=`: each code is predicted from all codes before it" in text and "upper bound" in text
    add_evaluation(two[1], bound=False)
    assert "upper bound" not in render(compare(two))


def test_what_models_were_given_stands_beside_their_bits(two):
    text = render(compare(two))
    assert "given" not in cells(text)[0] and "± " not in text and "errors" not in cells(text)[0]
    unsure = {"recordings": 628, "nats": [0.01] * 2, "bits_per_second": 6.1, "plus_minus": 12.0}
    add_evaluation(two[1], nats=(2.0, 3.5), conditions=["text"], uncertainty=unsure, eval_draws=4)
    text = render(compare(two))
    delay, masked = cells(text)
    assert delay["given"] == "nothing" and masked["given"] == "text"
    assert masked["bits/s"] == f"<= {5.5 / log(2) * 50:,.0f} ± 12" and "±" not in delay["bits/s"]
    assert "NOT given the same: nothing (delay); text (masked)" in text
    assert "random maskings of each recording: 4." in text and "95 % interval over rec" in text
    # an evaluation of before says nothing: the flags of the training do
    add_training(two[0], conditions=["text"])
    text = render(compare(two))
    assert [row["given"] for row in cells(text)] == ["text", "text"]
    assert "Every model is given text" in text and "NOT given" not in text


def test_masked_figures_of_an_earlier_version_are_remarked(two):
    path = two[1] / "eval_test.json"
    found = json.loads(path.read_text())
    del found["uncertainty"]
    path.write_text(json.dumps(found))
    (remark,) = compare(two)[1].remarks
    assert "how often each was masked; run rvqlm evaluate again" in remark


def test_error_rates_of_samples(two):
    values = {"error_rate": 0.367, "interval": [0.344, 0.391], "items": 33, "chance": 0.913}
    (two[1] / "samples" / "recognition.json").write_text(json.dumps(values))
    text = render(compare(two))
    assert [row["errors"] for row in cells(text)] == ["-", "36.7 % (34.4 to 39.1)"]
    assert "by chance 91.3 %" in text and "sounds alone" not in text
    values["sounds"] = {"error_rate": 0.2, "interval": [0.15, 0.25]}
    (two[1] / "samples" / "recognition.json").write_text(json.dumps(values))
    text = render(compare(two))
    assert [row["sounds alone"] for row in cells(text)] == ["-", "20.0 % (15.0 to 25.0)"]
    assert "without word boundaries and punctuation" in text
    add_sample(two[0], "a", kind="conditioned", conditions={"phonemes": "a b"})
    assert f"--samples {two[0] / 'samples'}" in "".join(compare(two)[0].remarks)


def test_settings_in_which_samples_differ_are_all_named(two):
    other = {"temperature": 0.7, "top_k": 200, "top_p": 1.0, "cfg_scale": 1.0}
    add_sample(two[0], "c", settings=other, seed=3)
    text = render(compare(two))
    assert "temperature 0.9 (2 of 3), 0.7 (1 of 3), seed 0 (2 of 3), 3 (1 of 3) (delay)" in text
    assert "temperature 0.9, steps 16, seed 0 (masked)" in text


def test_only_what_differs_is_named(tmp_path):
    exps = [tmp_path / name for name in "abc"]
    changes = [
        {},
        {"base-lr": 0.001, "head": "depth", "max-minutes": 9.0},
        {"conditions": ["text"]},
    ]
    for exp, change in zip(exps, changes):
        add_training(exp, **change)
        add_evaluation(exp)
    models = [row["model"] for row in cells(render(compare(exps)))]
    assert models == [
        "codec-lm, base-lr 0.004, head linear",  # of what it lacks, being older, the default
        "codec-lm, base-lr 0.001, head depth",
        "codec-lm, base-lr 0.004, conditions text, head linear",
    ]
    assert cells(render(compare(exps[:1])))[0]["model"] == "codec-lm"
    for exp, value in zip(exps, (True, False, True)):
        add_training(exp, **{"norm-first": value})
    assert cells(render(compare(exps)))[1]["model"] == "codec-lm, no norm-first"


def test_stages_are_one_row(tmp_path):
    exp = tmp_path / "staged"
    for stage, minutes in ((1, 2.0), (2, 4.0)):
        flags = {"model-name": "valle", "train-stage": stage}
        add_training(exp / f"stage{stage}", steps=10 * stage, minutes=minutes, **flags)
    add_evaluation(exp)
    add_sample(exp, "a")
    (row,) = compare([exp])
    assert (row.family, row.steps, row.frames_seen, row.minutes) == ("valle", 30, 7800, 6.0)
    assert [c.split("/")[-1] for c in row.commands] == ["stage1", "stage2", "staged"]
    assert row.options == {} and row.remarks == []
    # evaluated by the path of the last stage
    (exp / "eval_test.json").rename(exp / "stage2" / "eval_test.json")
    assert compare([exp])[0].evaluation["cuts"] == 628
    (alone,) = compare([exp / "stage2"])
    assert alone.minutes == 4.0 and "stages before are left out" in alone.remarks[0]


def test_other_frames_or_codes_are_refused(two):
    for change in ({"cuts": 600}, {"frames": 5}, {"prompt_fraction": 0.4}):
        add_evaluation(two[1], **change)
        with pytest.raises(UserError) as refused:
            compare(two)
        message = str(refused.value)
        assert "evaluated on different frames" in message and "\n" not in message
        assert "(delay)" in message and "(masked)" in message and "--prompt-fraction" in message
    add_evaluation(two[1])
    path = two[1] / "run.json"
    about = json.loads(path.read_text())
    about["data"]["codec"] = CODEC | {"name": "alias"}  # the same weights
    path.write_text(json.dumps(about))
    compare(two)
    for change in ({"fingerprint": "f" * 16}, {"num_codebooks": 1}):
        about["data"]["codec"] = CODEC | change
        path.write_text(json.dumps(about))
        with pytest.raises(UserError, match="different codecs or levels"):
            compare(two)


def test_what_is_missing_is_a_dash_and_a_remark(two, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    add_sample(bare, "a", kind="unprompted", batch_size=4, prompt=None, prompt_seconds=0.0)
    rows = compare([*two, bare])
    row = cells(render(rows))[-1]
    assert row.pop("experiment") == "bare" and set(row.values()) == {"-"}
    remarks = "\n".join(rows[-1].remarks)
    for words in ("no config.yaml", "no run.json", "no metrics.jsonl", "no eval_test.json",
                  "rvqlm evaluate --exp-dir", "not made one at a time"):  # fmt: skip
        assert words in remarks

    # what was made in a batch has its other figures, and no speed
    add_sample(two[0], "a", batch_size=2)
    add_sample(two[0], "b", batch_size=2)
    (row, _) = cells(render(compare(two)))
    assert (row["passes per s"], row["s per s"], row["silent"]) == ("-", "-", "20 %")


def test_samples_that_tell_of_other_things(two):
    add_sample(two[0], "old", step=10, silence_ratio=1.0)
    add_sample(two[1], "b", prompt="another cut", seed=1)
    rows = compare(two)
    assert rows[0].samples["continuation"].count == 2
    assert "1 samples of training steps before 20 are left out" in rows[0].remarks[0]
    assert "NOT made from the same beginnings" in render(rows)
    add_evaluation(two[0], step=15)
    assert "samples of step 20, evaluation of step 15" in "".join(compare(two)[0].remarks)


def test_mistakes(two, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such directory"):
        compare([*two, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no training"):
        compare([*two, tmp_path / "empty"])
    with pytest.raises(UserError, match="given twice"):
        compare([*two, two[0] / "." / "samples" / ".."])
    with pytest.raises(UserError, match="nothing to compare: no eval_valid"):
        compare(two, "valid")
    (two[0] / "config.yaml").write_text("- a list\n")
    with pytest.raises(UserError, match="not flags of rvqlm trainer"):
        compare(two)
    add_training(two[0])
    (two[0] / "eval_test.json").write_text('{"cuts": 3}')
    with pytest.raises(
        UserError, match=r"eval_test.json is damaged .*missing required field frames"
    ):
        compare(two)


def test_equal_names_are_told_apart(tmp_path):
    exps = [tmp_path / where / "delay" for where in ("x", "y")]
    for exp in exps:
        add_training(exp)
        add_evaluation(exp)
    assert [r["experiment"] for r in cells(render(compare(exps)))] == ["x/delay", "y/delay"]


def test_only_the_marked_part_of_a_page_changes():
    first = place("one\n", "# Mine\n\ntext\n", "a")
    assert first == "# Mine\n\ntext\n\n<!-- compare:begin a -->\none\n<!-- compare:end a -->\n"
    page = place("two\n", first + "\nafter\n", "b")
    again = place("three", page, "a")
    assert again == page.replace("one", "three") and place("three", again, "a") == again
    assert place("x", "", "a").startswith("<!-- compare:begin a -->\nx\n")
    for broken in (first.replace("<!-- compare:end a -->", ""), first + first):
        with pytest.raises(UserError, match="there must be one of each"):
            place("x", broken, "a")


def test_distances_beside_their_floor_and_a_model_that_listens_to_itself(two, tmp_path):
    assert not {"Fréchet", "kernel", "own - real, nats"} & set(cells(render(compare(two)))[0])
    free = free_running(2)
    free["likelihood"]["difference"] = [0.5, 0.25]
    free["codes"]["samples"]["kl"], free["codes"]["recordings"]["kl"] = [1.0, 2.0], [0.5, 1.0]
    add_evaluation(two[0], free_running=free)
    summary = {
        "recordings": {"codec-latents.frechet": {"mean": 5.5, "interval": None}},
        "codec": {"codec-latents.frechet": {"mean": 0.42, "interval": [0.39, 0.46]}},
        "samples": {"codec-latents.frechet": {"mean": 1.45, "interval": [-0.61, 3.5]}},
    }
    write(two[0] / "samples/judged_all.json", {"summary": summary})
    text = render(compare(two))
    delay, masked = cells(text)
    assert delay["Fréchet"] == "1.45 (-0.61 to 3.50)" and masked["Fréchet"] == "-"
    assert "kernel" not in delay
    assert delay["own - real, nats"] == "+0.38" and delay["KL (recordings)"] == "1.50 (0.75)"
    assert "through the codec 0.420 (0.390 to 0.460) (delay); - (masked), of halves" in text
    assert "`kernel` of the recordings" not in text and "(`--free-running 8`)" in text
