"""A dream of STORM in plain PyTorch, written for the comparison: the same shapes, a fixed cache, no gradients.

`python torch_storm.py '{"batch": 64, ...}'` is started by `benchmarks.dreams`; see serve.py for what it says and hears.
One request is one dream: the context's tokens are read, then each step chooses an action, appends one token and draws
the next latents. "eager" attends to the filled part of the cache; "compile" to all of it under a mask, so that every
step is one graph (`torch.compile`).
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from serve import answers, serve, timed
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-4) * self.scale


def mlp(inputs: int, layers: int, units: int, outputs: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(inputs, units), RMSNorm(units), nn.SiLU()]
        inputs = units
    return nn.Sequential(*parts, nn.Linear(inputs, outputs))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, at: Tensor, mask, filled):
        batch, count, width = x.shape
        query, key, value = self.qkv(x).view(batch, count, 3 * self.heads, -1).transpose(1, 2).split(self.heads, 1)
        query, key = rotate(query, turn), rotate(key, turn)
        keys.index_copy_(2, at, key)
        values.index_copy_(2, at, value)
        known = (keys, values) if filled is None else (keys[:, :, :filled], values[:, :, :filled])
        out = F.scaled_dot_product_attention(query, *known, attn_mask=mask)
        x = self.norms[0](x + self.merge(out.transpose(1, 2).reshape(batch, count, width)))
        return self.norms[1](x + self.outer(F.relu(self.inner(x))))


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * turn[0] - b * turn[1], a * turn[1] + b * turn[0]], -1)


class Model(nn.Module):
    def __init__(self, o: dict):
        super().__init__()
        self.o, self.size = o, o["stoch"] * o["classes"]
        width = o["width"]
        self.mix = mlp(self.size + o["actions"], 1, width, width)
        self.start = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(Block(width, o["heads"], o["hidden"]) for _ in range(o["layers"]))
        self.prior = nn.Linear(width, self.size)
        self.actor = mlp(self.size + width, o["policy_layers"], o["units"], o["actions"])
        half = width // o["heads"] // 2
        angle = torch.arange(o["slots"])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def transform(self, token: Tensor, at: Tensor, cache: list[tuple[Tensor, Tensor]], mask, filled) -> Tensor:
        x, turn = self.start(token), (self.cos[at], self.sin[at])
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            x = block(x, turn, keys, values, at, mask, filled)
        return x

    def step(self, stoch: Tensor, hidden: Tensor, at: Tensor, cache, mask, filled):
        """One dreamed frame: the next latents and output, and what the policy saw and did."""
        feat = torch.cat([stoch, hidden], -1)
        action = F.one_hot(torch.multinomial(self.actor(feat).softmax(-1), 1)[:, 0], self.o["actions"]).to(feat.dtype)
        token = self.mix(torch.cat([stoch, action], -1))[:, None]
        hidden = self.transform(token, at, cache, mask, filled)[:, 0]
        logits = self.prior(hidden).view(-1, self.o["stoch"], self.o["classes"])
        probs = 0.99 * logits.softmax(-1) + 0.01 / self.o["classes"]
        drawn = (probs.cumsum(-1)[..., :-1] <= torch.rand(*probs.shape[:2], 1)).sum(-1)
        return F.one_hot(drawn, self.o["classes"]).to(feat.dtype).flatten(1), hidden, feat, action


@torch.no_grad()
def dream(model: Model, step, stoch: Tensor, action: Tensor, cache, whole: bool) -> Tensor:
    """Features `[H + 1, R, Z + W]` of dreams after contexts `[R, K, Z]` and their actions `[R, K - 1, A]`."""
    o, seen = model.o, action.shape[1]
    slot = torch.arange(o["slots"])
    mask = (slot[:seen, None] >= slot[:seen]) if seen else None
    token = model.mix(torch.cat([stoch[:, :-1], action], -1))
    hidden = model.transform(token, slot[:seen], cache, mask, seen)[:, -1]
    state, feats = stoch[:, -1], []
    for t in range(seen, seen + o["horizon"]):
        at = slot[t : t + 1]
        mask = (slot <= t)[None] if whole else None
        state, hidden, feat, _ = step(state, hidden, at, cache, mask, None if whole else t + 1)
        feats.append(feat)
    return torch.stack([*feats, torch.cat([state, hidden], -1)])


def main() -> None:
    say, o = answers(), json.loads(sys.argv[1])
    torch.set_num_threads(o["threads"])
    torch.manual_seed(0)
    model = Model(o).eval()
    rows, context = o["batch"], o["context"]
    shape = rows, o["heads"], o["slots"], o["width"] // o["heads"]
    cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in model.blocks]
    stoch = F.one_hot(torch.randint(o["classes"], (rows, context, o["stoch"])), o["classes"]).float().flatten(2)
    action = F.one_hot(torch.randint(o["actions"], (rows, context - 1)), o["actions"]).float()
    whole = o["how"] == "compile"
    step = torch.compile(model.step, dynamic=False) if whole else model.step
    run = lambda: dream(model, step, stoch, action, cache, whole)  # noqa: E731
    for _ in range(3):
        assert run().isfinite().all()
    serve(
        say,
        {"parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__},
        {"update": timed(run)},
    )


if __name__ == "__main__":
    main()
