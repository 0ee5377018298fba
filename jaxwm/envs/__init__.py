"""Environments by name.

    env = make("atari/Pong", num_envs=4, sticky=0.25)

`suite/Task`: continuous, gymnax, minatar, pgx, probe and tabular are pure JAX (`env.pure`); atari, dmc, classic, box2d
and vizdoom are host pools; remote/HOST:PORT is an environment of another process or machine.
A new environment is two functions (`from_functions`) or any object with gymnasium's interface (`from_gymnasium`), and
may be given a name with `register`. gymnax, pgx and envpool are imported only when one of theirs is asked for."""

from jaxwm.envs.host import from_gymnasium
from jaxwm.envs.pure import from_functions
from jaxwm.envs.registry import REMOTE, SCORED, make, names, register

__all__ = ["REMOTE", "SCORED", "from_functions", "from_gymnasium", "make", "names", "register"]
