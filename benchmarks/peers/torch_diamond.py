"""A dream of DIAMOND in plain PyTorch, written for the comparison: the same networks and passes, no gradients.

`python torch_diamond.py '{"batch": 32, ...}'` is started by `benchmarks.dreams`; see serve.py for what it says and
hears. One request is one dream: at each step the policy looks at the newest frame and chooses an action, the U-Net
paints the next frame in a few passes, and the model of rewards and ends looks at both. "compile" compiles a whole step.
"""

from __future__ import annotations

import itertools
import json
import math
import sys

import torch
import torch.nn.functional as F
from serve import answers, serve, timed
from torch import Tensor, nn


def groups(channels: int) -> int:
    return max(n for n in range(1, max(1, channels // 32) + 1) if channels % n == 0)


class Steered(nn.Module):
    """Group norm with scale and shift of a condition, and SiLU."""

    def __init__(self, channels: int, cond: int):
        super().__init__()
        self.groups, self.steer = groups(channels), nn.Linear(cond, 2 * channels)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.steer(cond)[:, :, None, None].chunk(2, 1)
        return F.silu(F.group_norm(x, self.groups, eps=1e-5) * (1 + scale) + shift)


class Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.heads = max(1, channels // 8)
        self.norm = nn.GroupNorm(groups(channels), channels, eps=1e-5)
        self.into, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, _, height, width = x.shape
        query, key, value = self.into(self.norm(x)).view(rows, 3, self.heads, -1, height * width).mT.unbind(1)
        out = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(out.mT.reshape(x.shape))


class Residual(nn.Module):
    def __init__(self, inputs: int, channels: int, cond: int, attention: bool = False):
        super().__init__()
        self.around = nn.Conv2d(inputs, channels, 1) if inputs != channels else nn.Identity()
        self.norms = nn.ModuleList([Steered(inputs, cond), Steered(channels, cond)])
        self.into, self.out = nn.Conv2d(inputs, channels, 3, 1, 1), nn.Conv2d(channels, channels, 3, 1, 1)
        self.attention = Attention(channels) if attention else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        y = self.out(self.norms[1](self.into(self.norms[0](x, cond)), cond))
        return self.attention(self.around(x) + y)


class Descent(nn.Module):
    def __init__(self, channels: list[int], blocks: int, cond: int):
        super().__init__()
        before = [channels[0], *channels[:-1]]
        self.halve = nn.ModuleList([nn.Conv2d(c, c, 3, 2, 1) for c in before[1:]])
        make = lambda a, c: [Residual(a if j == 0 else c, c, cond) for j in range(blocks)]  # noqa: E731
        self.blocks = nn.ModuleList([nn.ModuleList(make(a, c)) for a, c in zip(before, channels, strict=True)])
        self.middle = nn.ModuleList([Residual(channels[-1], channels[-1], cond, True) for _ in range(2)])

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i, level in enumerate(self.blocks):
            x = self.halve[i - 1](x) if i else x
            skips.append(x)
            for block in level:
                x = block(x, cond)
                skips.append(x)
        for block in self.middle:
            x = block(x, cond)
        return x, skips


class UNet(nn.Module):
    def __init__(self, channels: list[int], blocks: int, cond: int):
        super().__init__()
        self.down, last = Descent(channels, blocks, cond), len(channels) - 1
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(channels))):
            here, above = channels[i], channels[max(0, i - 1)]
            self.grow.append(nn.Conv2d(here, here, 3, 1, 1) if i < last else nn.Identity())
            each = [Residual(2 * here, here, cond) for _ in range(blocks)] + [Residual(here + above, above, cond)]
            self.up.append(nn.ModuleList(each))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        x, skips = self.down(x, cond)
        for i, (grow, level) in enumerate(zip(self.grow, self.up, strict=True)):
            x = grow(F.interpolate(x, scale_factor=2.0, mode="nearest")) if i else x
            for block in level:
                x = block(torch.cat([x, skips.pop()], 1), cond)
        return x


class Eyes(nn.Module):
    """The policy's: residual blocks, each halved by a maximum."""

    def __init__(self, inputs: int, depth: int):
        super().__init__()
        widths = [depth, depth, depth, 2 * depth, 2 * depth]
        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Conv2d(inputs, depth, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(groups(a), a, eps=1e-5) for a, _ in pairs])
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 3, 1, 1) for a, b in pairs])
        self.around = nn.ModuleList([nn.Conv2d(a, b, 1) if a != b else nn.Identity() for a, b in pairs])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv, around in zip(self.norms, self.convs, self.around, strict=True):
            x = F.max_pool2d(around(x) + conv(F.silu(norm(x))), 2)
        return x.flatten(1)


class Model(nn.Module):
    def __init__(self, o: dict):
        super().__init__()
        self.o, side, colours, cond = o, o["side"], o["colours"], o["cond"]
        self.action = nn.Linear(o["actions"], cond // o["past"])
        self.register_buffer("frequencies", torch.randn(cond // 2))
        self.cond = nn.Sequential(nn.Linear(cond, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.stem = nn.Conv2d((o["past"] + 1) * colours, o["channels"][0], 3, 1, 1)
        self.unet = UNet(o["channels"], o["blocks"], cond)
        self.norm = nn.GroupNorm(groups(o["channels"][0]), o["channels"][0], eps=1e-5)
        self.out = nn.Conv2d(o["channels"][0], colours, 3, 1, 1)
        widths, units = o["outcome_channels"], o["outcome_units"]
        self.outcome_action = nn.Linear(o["actions"], o["outcome_cond"])
        self.outcome_stem = nn.Conv2d(2 * colours, widths[0], 3, 1, 1)
        self.outcome = Descent(widths, o["outcome_blocks"], o["outcome_cond"])
        self.outcome_lstm = nn.LSTMCell(widths[-1] * (side // 2 ** (len(widths) - 1)) ** 2, units)
        self.head = nn.Sequential(nn.Linear(units, units), nn.SiLU(), nn.Linear(units, 4))
        self.eyes = Eyes(colours, o["policy_depth"])
        self.lstm = nn.LSTMCell(2 * o["policy_depth"] * (side // 16) ** 2, o["units"])
        self.actor, self.critic = nn.Linear(o["units"], o["actions"]), nn.Linear(o["units"], 1)

    def denoise(self, x: Tensor, sigma: float, past: Tensor, actions: Tensor) -> Tensor:
        noise2 = sigma**2 + 0.09
        skip = 0.25 / (noise2 + 0.25)
        angle = 2 * math.pi * (math.log(noise2) / 8) * self.frequencies
        level = torch.cat([angle.cos(), angle.sin()])
        cond = self.cond(level + self.action(actions).flatten(1))
        y = self.stem(torch.cat([past, x * (noise2 + 0.25) ** -0.5], 1))
        y = self.out(F.silu(self.norm(self.unet(y, cond))))
        clean = (skip * x + math.sqrt(noise2 * skip) * y).clamp(-1, 1)
        return ((clean + 1) * 127.5).round() / 127.5 - 1

    def step(self, frames: Tensor, actions: Tensor, memory, outcome):
        """One dreamed frame: the stack of frames and actions, both memories, what came out of the heads."""
        o, frame = self.o, frames[:, -1]
        memory = self.lstm(self.eyes(frame), memory)
        chosen = torch.multinomial(self.actor(memory[0]).softmax(-1), 1)[:, 0]
        action = F.one_hot(chosen, o["actions"]).to(frame.dtype)
        actions = torch.cat([actions[:, 1:], action[:, None]], 1)
        past, x = frames.flatten(1, 2) / 0.5, torch.randn_like(frame)
        for now, then in itertools.pairwise(o["levels"]):
            x = x + (x - self.denoise(x, now, past, actions)) / now * (then - now)
        x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        pair, _ = self.outcome(self.outcome_stem(torch.cat([frame, x], 1)), self.outcome_action(action))
        outcome = self.outcome_lstm(pair.flatten(1), outcome)
        return torch.cat([frames[:, 1:], x[:, None]], 1), actions, memory, outcome, self.head(outcome[0])


@torch.no_grad()
def dream(model: Model, step) -> Tensor:
    """Frames `[B, H, C, H, W]` of dreams from nothing."""
    o = model.o
    shape = o["batch"], o["past"], o["colours"], o["side"], o["side"]
    frames, actions = torch.zeros(shape), torch.zeros(o["batch"], o["past"], o["actions"])
    memory, outcome = ((torch.zeros(o["batch"], n),) * 2 for n in (o["units"], o["outcome_units"]))
    seen = []
    for _ in range(o["horizon"]):
        frames, actions, memory, outcome, _ = step(frames, actions, memory, outcome)
        seen.append(frames[:, -1])
    return torch.stack(seen, 1)


def main() -> None:
    say, o = answers(), json.loads(sys.argv[1])
    torch.set_num_threads(o["threads"])
    torch.manual_seed(0)
    model = Model(o).eval()
    step = torch.compile(model.step, dynamic=False) if o["how"] == "compile" else model.step
    run = lambda: dream(model, step)  # noqa: E731
    for _ in range(2):
        assert run().isfinite().all()
    count = sum(p.numel() for p in model.parameters()) + model.frequencies.numel()
    serve(say, {"parameters": count, "torch": torch.__version__}, {"update": timed(run)})


if __name__ == "__main__":
    main()
