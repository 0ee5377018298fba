"""Environments by name.

    env = make("atari/Pong", num_envs=4, sticky=0.25)

`suite/Task`: brax, continuous, craftax, gymnax, jumanji-jax, minatar, pgx, probe, tabular and xminigrid are pure JAX
(`env.pure`); atari, dmc, classic, box2d and vizdoom are host pools.
A new environment is two functions (`from_functions`) or any object with gymnasium's interface (`from_gymnasium`,
`from_gymnasium_vector`), and may be given a name with `register`. A library is imported only when one of its
environments is asked for."""

from jaxwm.envs.host import from_gymnasium
from jaxwm.envs.pure import from_functions
from jaxwm.envs.registry import SCORED, make, names, register
from jaxwm.envs.vector import from_gymnasium_vector

__all__ = ["SCORED", "from_functions", "from_gymnasium", "from_gymnasium_vector", "make", "names", "register"]
