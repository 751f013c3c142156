"""The model of this folder in plain PyTorch, to check another engine against: greedy codes.

    python reference.py 50                        # frames, unprompted
    python reference.py 50 prompt.npy             # behind (P, K) codes; prints (T, K)

Nothing is cached: each step runs over all steps before it.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

COVERED = {"pattern": ("delay", "parallel"), "head": ("linear",), "input_side": ("sum",),
           "shared_head": (False,), "conditions": ((), [])}  # fmt: skip
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "relu2": lambda x: F.relu(x) ** 2,
               "swiglu": lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]}  # fmt: skip


def uncovered(config: dict) -> list[str]:
    """What of config.json this file does not know."""
    if config["model_name"] != "codec-lm":
        return [f"the family {config['model_name']}"]
    options = config["model_config"]
    found = [k for k, known in COVERED.items() if options[k] not in known]
    return [f"{k} {options[k]}".translate(str.maketrans("", "", "[]()',")) for k in found]


def rotate(x, base):  # (S, H, D): pairs (i, i + D/2) by the step times base^(-2 i / D)
    half = torch.arange(0, x.shape[-1], 2, dtype=torch.float64)
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * base ** (-half / x.shape[-1])
    cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def hidden(w, c, V, inputs):
    """(S, K) ids of the step before each -> (S, d)."""
    K, d, name = inputs.shape[1], c["decoder_dim"], "network.transformer."
    x = w["embedding.weight"].view(K, V + 1, d)[torch.arange(K), inputs].sum(1)

    def norm(x, key):
        f = F.layer_norm if c["norm"] == "layernorm" else F.rms_norm
        return f(x, (d,), w[name + key + ".norm.weight"])

    def attention(x):
        qkv = F.linear(x, w[layer + "attention.qkv.weight"])
        heads, shared = c["nhead"], c.get("kv_heads") or c["nhead"]
        q, k, v = qkv.view(len(x), -1, d // heads).split([heads, shared, shared], 1)
        q, k = rotate(q, c["rope_base"]), rotate(k, c["rope_base"])
        k, v = (t.repeat_interleave(heads // shared, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)), is_causal=True)
        return F.linear(y.transpose(0, 1).reshape(-1, d), w[layer + "attention.out.weight"])

    def feedforward(x):
        x = F.linear(x, w[layer + "feedforward.up.weight"])
        return F.linear(ACTIVATIONS[c["activation"]](x), w[layer + "feedforward.down.weight"])

    for i in range(c["num_decoder_layers"]):
        layer = f"{name}layers.{i}."
        for branch, f in (("attention", attention), ("feedforward", feedforward)):
            key = f"layers.{i}.{branch}_norm"
            x = x + f(norm(x, key)) if c["norm_first"] else norm(x + f(x), key)
    return norm(x, "norm") if c["norm_first"] else x


@torch.no_grad()
def generate(w, config, frames, prompt):
    """Codes (T, K) with the prompt (P, K), at most ``frames`` more."""
    c, codec = config["model_config"], config["codec"]
    K, V = codec["num_codebooks"], codec["codebook_size"]
    end = w.get("end_head.linear.weight")
    delays = [0] * K if c["pattern"] == "parallel" else list(c["delays"]) or list(range(K))
    length = limit = len(prompt) + frames
    grid = torch.full((1, K), V)  # V: no code there; row s + 1 is step s
    step = 0
    while step < length + max(delays):
        h = hidden(w, c, V, grid)[-1]
        undecided = end is not None and max(1, len(prompt)) <= step < length == limit
        if undecided and F.linear(h, end, w["end_head.linear.bias"]) > 0:
            length = step  # frames; what they lack of finer levels is still made
        codes = (w["heads.weight"] @ h).argmax(-1)
        for k, frame in enumerate(step - delay for delay in delays):
            if not 0 <= frame < length:
                codes[k] = V
            elif frame < len(prompt):
                codes[k] = prompt[frame, k]
        grid = torch.cat([grid, codes[None]])
        step += 1
    return torch.stack([grid[1 + delays[k] :][:length, k] for k in range(K)], 1)


def load(folder):
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "config.json").read_text())
    if missing := uncovered(config):
        raise SystemExit(f"reference.py does not cover {', '.join(missing)}")
    return {k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()}, config


if __name__ == "__main__":
    weights, config = load(Path(__file__).parent)
    prompt = torch.empty(0, config["codec"]["num_codebooks"], dtype=torch.int64)
    if len(sys.argv) > 2:
        import numpy

        prompt = torch.from_numpy(numpy.load(sys.argv[2], allow_pickle=False).astype("int64"))
    for row in generate(weights, config, int(sys.argv[1]), prompt).tolist():
        print(*row)
