"""jaxwm: world-model reinforcement learning as pure JAX functions.

env = jaxwm.envs.make("gymnax/Catch-bsuite", num_envs=4)
agent = jaxwm.make("dreamer-v3", env.spec, preset="nano")
trainer = jaxwm.Trainer(agent, env, members=3)
life = trainer.init(seed=0)

`jaxwm.load("runs/mine")` gives the agent and the state of a run back."""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxwm import agents, envs, replay, types
    from jaxwm.agents import make
    from jaxwm.run.load import load
    from jaxwm.run.plan import Plan
    from jaxwm.training.life import Cursor
    from jaxwm.training.trainer import Trainer

__all__ = ["Cursor", "Plan", "Trainer", "agents", "envs", "load", "make", "replay", "types"]

_HOMES = {
    "make": "agents", "load": "run.load", "Plan": "run.plan", "Cursor": "training.life", "Trainer": "training.trainer",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """What the package offers, imported at first use, so that the command line can answer without JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    return getattr(home, name) if name in _HOMES else home


def __dir__() -> list[str]:
    return [*globals(), *__all__]
