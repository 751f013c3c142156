"""The stand-alone decoder of an exported model gives the model's own greedy codes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from families import INFO, SMALL, K, V, make

import rvqlm
from rvqlm.checkpoints import reference
from rvqlm.checkpoints.exported import save_pretrained
from rvqlm.models.factory import build_model

CASES = {
    "delay": {},
    "delays": {"delays": (0, 2, 2)},
    "parallel": {"pattern": "parallel", "norm": "rmsnorm", "kv_heads": 1, "activation": "swiglu"},
    "post-norm": {"norm_first": False, "activation": "relu2", "model_end": False},
}


def exported(folder, **config):
    torch.manual_seed(0)
    model = build_model("codec-lm", {**SMALL, **config}, INFO).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model, save_pretrained(model, folder / "out")


@pytest.mark.parametrize("case", CASES)
def test_greedy_codes_are_the_models_own(case, tmp_path):
    model, folder = exported(tmp_path, **CASES[case])
    weights, config = reference.load(folder)
    stopped = set()
    for prompt, bias in ((0, -50.0), (4, -50.0), (4, 0.0), (0, 0.0), (3, 50.0)):
        if model.end_head is not None:
            model.end_head.linear.bias.data.fill_(bias)
            weights["end_head.linear.bias"] = model.end_head.linear.bias.detach().clone()
        codes = torch.randint(V, (1, prompt, K))
        made = model.generate(codes, max_new_frames=9, temperature=0)
        found = reference.generate(weights, config, 9, codes[0])
        assert torch.equal(found, made.codes[0]) and torch.equal(found[:prompt], codes[0])
        stopped.add(made.stop[0])
    assert stopped == ({"length"} if model.end_head is None else {"eos", "length"})


def test_runs_without_the_package(tmp_path):
    """As a user of the folder runs it: no import of rvqlm, codes on stdout."""
    model, folder = exported(tmp_path, model_end=False)
    text = (folder / "reference.py").read_text()
    assert "rvqlm" not in text and "torch.load" not in text
    prompt = np.arange(2 * K).reshape(2, K) % V
    np.save(tmp_path / "prompt.npy", prompt)
    words = [sys.executable, "-I", folder / "reference.py", "3", tmp_path / "prompt.npy"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = [[int(code) for code in line.split()] for line in done.stdout.splitlines()]
    made = model.generate(torch.from_numpy(prompt)[None], max_new_frames=3, temperature=0)
    assert found == made.codes[0].tolist()


@pytest.mark.parametrize(
    "case,said",
    [
        ("mlp-shared", "head mlp, input_side attention, shared_head True"),
        ("flatten", "pattern flatten"),
        ("text-spread", "conditions text"),
        ("valle", "the family valle"),
    ],
)
def test_says_what_it_does_not_cover(case, said, tmp_path):
    folder = save_pretrained(make(case), tmp_path / "out")
    with pytest.raises(SystemExit, match=r"reference\.py does not cover ") as refused:
        reference.load(folder)
    assert said in str(refused.value)
    assert f"does not cover {said}" in (folder / "README.md").read_text()
    assert rvqlm.from_pretrained(folder).name == make(case).name
