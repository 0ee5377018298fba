"""Brax: MuJoCo's tasks in JAX (Freeman et al. 2021), pure: float32 vectors, actions in [-1, 1].

Brax says of itself that it is no longer developed; `dmc` and `mujoco` have the same tasks in C++."""

import contextlib
import io
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm.envs.pure import from_functions
from jaxwm.errors import check_choice, check_number
from jaxwm.types import Array, Box, Env, Spec

BACKENDS = ("generalized", "spring", "positional", "mjx")


def brax(
    task: str, num_envs: int = 1, *, max_steps: int = 1000, action_repeat: int = 1, backend: str | None = None
) -> Env:
    """The task with Brax's name `task`, such as "halfcheetah".
    `max_steps` is the time limit in steps of the agent, each `action_repeat` steps of Brax; `backend` is the physics,
    by default the task's own. Raises ImportError where brax is missing, ValueError for an unknown backend."""
    name = f"brax/{task}"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # of parts that are not used here
            warnings.simplefilter("ignore")
            from brax import envs as library  # type: ignore[attr-defined]
    except ImportError as error:
        raise ImportError(f"{name} needs brax ({error}): pip install 'jaxwm[brax]'") from error
    check_number(f"{name}: max_steps", max_steps, least=1, whole=True)
    check_number(f"{name}: action_repeat", action_repeat, least=1, whole=True)
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Brax System", UserWarning)  # that it is no longer maintained: see above
        native = library.get_environment(task, **({} if backend is None else {"backend": backend}))

    def reset(key: Array) -> tuple[Any, Array]:
        now = native.reset(key)
        return (now, jnp.int32(0)), now.obs

    def step(key: Array, state: Any, action: Array) -> tuple[Any, Array, Array, Array, Array]:
        def once(now: Any, _: None) -> tuple[Any, Array]:
            after = native.step(now, action)
            over = now.done > 0  # nothing moves and nothing is paid after an end
            return jax.tree.map(lambda a, b: jnp.where(over, a, b), now, after), jnp.where(over, 0.0, after.reward)

        now, rewards = jax.lax.scan(once, state[0], None, action_repeat)
        time = state[1] + 1
        return (now, time), now.obs, rewards.sum(), now.done > 0, time >= max_steps

    obs = jax.eval_shape(native.reset, jax.random.key(0)).obs
    return from_functions(Spec(name, obs, Box(int(native.action_size)), max_steps), reset, step, num_envs)
