"""jaxwm: world-model reinforcement learning as pure JAX functions.

env = jaxwm.envs.make("gymnax/Catch-bsuite", num_envs=4)
agent = jaxwm.make("dreamer-v3", env.spec, preset="nano")
trainer = jaxwm.Trainer(agent, env, members=3)
life = trainer.init(seed=0)

`jaxwm.load("runs/mine")` gives the agent and the state of a run back."""

__version__ = "0.1.0"

from jaxwm import agents, envs, replay, types
from jaxwm.agents import make
from jaxwm.run.load import load
from jaxwm.run.plan import Plan
from jaxwm.training.life import Cursor
from jaxwm.training.trainer import Trainer

__all__ = ["Cursor", "Plan", "Trainer", "agents", "envs", "load", "make", "replay", "types"]
