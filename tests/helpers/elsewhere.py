"""Servers in processes of their own, from a copy of the one file that another machine needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from jaxwm.envs import wire

GAME = '''
import sys
from types import SimpleNamespace

import numpy as np

assert not {"jax", "jaxwm", "gymnasium"} & set(sys.modules), "the file needs NumPy only"


def kind(name, **fields):
    space = type(name, (), {})()
    space.__dict__.update(fields)
    return space


class Game:
    """Counts; an episode has five steps, and the action 2 breaks it."""

    spec = SimpleNamespace(id="Count-v0", max_episode_steps=5)
    action_space = kind("Discrete", n=3, start=0)
    observation_space = kind("Dict", spaces={
        "eye": kind("Box", shape=(16, 16, 3), dtype=np.uint8, low=0, high=255),
        "pair": kind("Tuple", spaces=(kind("Discrete", n=6, start=0),
                                      kind("Box", shape=(2,), dtype=np.float64, low=[-1, -np.inf], high=np.inf))),
    })

    def obs(self):
        return {"eye": np.full((16, 16, 3), self.time, np.uint8), "pair": (self.time, self.noise[self.time])}

    def reset(self, seed=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.time, self.noise = 0, self.rng.normal(size=(6, 2))
        return self.obs(), {}

    def step(self, action):
        if action == 2:
            raise KeyError("a bug of the game")
        self.time += 1
        return self.obs(), 0.1 * self.time + action, self.time == 5 and action == 1, self.time == 5, {}


class Plain(Game):
    """The same, seen as the index of a state, for tables."""

    spec = SimpleNamespace(id="Plain-v0", max_episode_steps=5)
    action_space = kind("Discrete", n=2, start=0)
    observation_space = kind("Discrete", n=6, start=0)

    def obs(self):
        return self.time


class Liar(Game):
    """Its observations are not those of its spaces."""

    def obs(self):
        return super().obs() | {"eye": np.zeros((8, 8, 3), np.uint8)}
'''


class Elsewhere:
    """An environment server; `what` is a class of GAME or the name of a Gymnasium environment."""

    def __init__(self, folder: Path, what: str, port: int = 0, token: str = "", *options: str):
        shutil.copy(wire.__file__, folder / "wire.py")
        (folder / "game.py").write_text(GAME)
        what = f"game.py:{what}" if what in ("Game", "Plain", "Liar") else what
        command = [sys.executable, "wire.py", what, "--port", str(port), *options]
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", wire.TOKEN)}
        variables |= {wire.TOKEN: token} if token else {}
        self.process = subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True)
        self.said = self.process.stdout.readline()  # type: ignore[union-attr]
        self.address = self.said.partition("remote/")[2].strip()
        assert self.address, f"{what} is not served"
        self.port = wire.parse(self.address)[1]

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
