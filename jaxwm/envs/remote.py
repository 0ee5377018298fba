"""`remote/HOST:PORT`: an environment that another process or machine serves with `jaxwm/envs/wire.py`."""

import time
import warnings

from jaxwm.envs import wire
from jaxwm.envs.host import from_gymnasium
from jaxwm.errors import check_number
from jaxwm.types import Env

AGAIN = 0.5  # seconds between two tries to connect


def remote(address: str, num_envs: int = 1, *, timeout: float = 60.0, patience: float = 30.0) -> Env:
    """The environment at HOST:PORT, `num_envs` of it for each member, one connection each.

    A token comes out of the variable JAXWM_TOKEN, so that it is in no file of a run.

    timeout   seconds that an answer may take; a game that is silent for longer counts as dead.
    patience  seconds to wait for a server that went away to come back, each time that the pool is built anew.

    Raises ValueError for what is no address and for a value out of range, ConnectionError where no server answers."""
    name = f"remote/{address}"
    check_number(f"{name}: timeout", timeout, above=0)
    check_number(f"{name}: patience", patience, least=0)
    wire.parse(address)
    seen = False

    def make_one(seed: int) -> wire.Environment:
        nonlocal seen
        env = _connect(address, timeout, patience if seen else 0)  # at the start nobody waits for a wrong address
        seen = True
        return env

    return from_gymnasium(make_one, num_envs)


def _connect(address: str, timeout: float, patience: float) -> wire.Environment:
    """The environment, as soon as its server answers; ConnectionError where it does not for too long."""
    until, told = time.monotonic() + patience, False
    while True:
        try:
            return wire.Environment(address, timeout=timeout)
        except ConnectionError as error:
            if time.monotonic() > until:
                raise
            if not told:
                told = True
                warnings.warn(f"{error}; waiting {patience:g} s for it", stacklevel=2)
            time.sleep(AGAIN)
