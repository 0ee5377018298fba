"""Host environments: pools stepped in Python over NumPy arrays, and the bookkeeping that they share."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs import border, gym_spaces, images
from jaxwm.envs.pure import check_num_envs
from jaxwm.types import Discrete, Env, Key, PyTree, Spec, Step


class Outcome(NamedTuple):
    """What a pool returns; every leaf has the leading axis `[K]`, K = M * N."""

    obs: PyTree
    reward: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray


class Pool(Protocol):
    """K environments that reset themselves at the step after `is_last`, ignoring that step's action."""

    def reset(self) -> PyTree:
        """The first observations `[K, ...]`."""

    def step(self, action: np.ndarray) -> Outcome:
        """One step with our actions `[K, ...]`."""
        ...

    def close(self) -> None:
        """Free what the pool holds."""


class Handle:
    """The `env_state` of a host environment: the pool, the number of members, who starts anew at the next step.
    `replaced` int `[M, N]` counts steps in which a number was not finite (see `envs.border`). `step` changes a handle
    in place; there is no way back to an earlier one."""

    def __init__(self, pool: Pool, members: int, num_envs: int):
        self.pool: Pool | None = pool
        self.members = members
        self.is_last = np.zeros(members * num_envs, bool)
        self.replaced = np.zeros((members, num_envs), np.int64)


def host_env(spec: Spec, num_envs: int, open_pool: Callable[[list[int]], Pool]) -> Env:
    """An `Env` with `pure=False` over the pools that `open_pool(seeds)` builds, one seed for each environment."""
    check_num_envs(num_envs)

    def passed(handle: Handle, obs: PyTree, reward: np.ndarray, *flags: np.ndarray, bad: Any = False) -> Step:
        """What the pool returned, `[K, ...]`, as a `Step` `[M, N, ...]`; numbers that are not finite become 0."""
        obs = border.checked(spec, obs, flags[1])
        (obs, reward), worse = border.finite((obs, reward))
        lead = handle.replaced.shape
        if bad is not False or worse is not False:
            handle.replaced += np.reshape(bad | worse, lead)
        step: Any = (obs, reward, *flags)
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), Step(*step))

    def reset(keys: Key) -> tuple[Handle, Step]:
        seeds = env_seeds(keys, num_envs)
        pool = open_pool(seeds.ravel().tolist())
        handle = Handle(pool, len(seeds), num_envs)
        no, yes = np.zeros(seeds.size, bool), np.ones(seeds.size, bool)
        return handle, passed(handle, pool.reset(), np.zeros(seeds.size, np.float32), yes, no, no.copy())

    def step(handle: Handle, action: Any) -> tuple[Handle, Step]:
        if handle.pool is None:
            raise RuntimeError(f"{spec.name}: this handle was closed; call reset for a new one")
        action, bad = border.native_action(spec, action, (handle.members, num_envs))
        out = handle.pool.step(action)
        is_first, going, num = handle.is_last, ~handle.is_last, (len(action),)
        last, terminal = (border.flag(spec.name, *x, num) for x in (("is_last", out[2]), ("is_terminal", out[3])))
        handle.is_last = last & going
        reward = np.where(is_first, np.float32(0), border.reward(spec.name, out.reward, num))
        # Copies, so that nobody who keeps or changes a Step can touch what the handle remembers.
        return handle, passed(handle, out.obs, reward, is_first, handle.is_last.copy(), terminal & going, bad=bad)

    return Env(spec, reset, step, num_envs, pure=False, close=close)


def close(handle: Handle) -> None:
    """Close the pool behind `handle`; a second call does nothing."""
    if handle.pool is not None:
        handle.pool.close()
        handle.pool = None


def env_seeds(keys: Key, num_envs: int) -> np.ndarray:
    """int32-sized seeds `[M, N]` out of member keys `[M]`: seed (m, n) depends on `keys[m]` and n alone."""
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        usual = "typed keys [M], one for each member, such as jax.random.split(jax.random.key(0), 1)"
        raise ValueError(f"a host environment is reset with {usual}; got {keys.dtype}{list(keys.shape)}")
    return np.asarray(jax.device_get(_seeds(keys, num_envs)))


@partial(jax.jit, static_argnums=1)
def _seeds(keys: Key, num_envs: int) -> jax.Array:
    one = lambda key, n: jax.random.bits(jax.random.fold_in(key, n)) >> 1  # noqa: E731  # 31 bits: pools take an int32
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, jnp.arange(num_envs))


def from_gymnasium(
    make_one: Callable[[int], Any], num_envs: int = 1, spec: Spec | None = None, image_size: int | None = None,
    fit: images.Fit = "resize",
) -> Env:  # fmt: skip
    """A host `Env` out of single environments with gymnasium's interface, stepped one after the other in this process.

    `make_one(seed)` returns an object with `reset(seed=...) -> (obs, info)` and `step(action) -> (obs, reward,
    terminated, truncated, info)`; it is called once for each of the M * N environments, and its first `reset` gets the
    seed too. A `close()` is called where there is one.

    Without a `spec` one environment is built to read its `observation_space` and `action_space`; uint8 images must be
    channels last or first. Box actions in [-1, 1] are then scaled to the native bounds. All images are scaled to
    `image_size`, or padded up to it, as `fit` says; "pad" without a size takes the smallest that convolutions can see.
    With a `spec` nothing is inferred: observations must be those of `spec.obs`, and actions are handed over as they
    are, in [-1, 1].

    Raises ValueError for a space without a counterpart in `jaxwm.types`, and `border.Misfit` when what is returned is
    not what the spaces or the spec say."""
    if given := spec is not None:
        read, write = border.reader_of(spec), lambda action: action
    else:
        spec, read, write = _infer(make_one, images.Option(image_size, fit))
    discrete = isinstance(spec.action, Discrete)
    form = partial(border.flattened, spec) if given else lambda obs: obs
    return host_env(spec, num_envs, lambda seeds: _Loop(make_one, seeds, read, write, discrete, form))


def _infer(make_one: Callable[[int], Any], option: images.Option) -> tuple[Spec, border.Reader, gym_spaces.Writer]:
    env = make_one(0)
    if not (hasattr(env, "observation_space") and hasattr(env, "action_space")):
        wanted = f"an environment with observation_space and action_space, not {type(env).__name__}"
        raise ValueError(f"make_one(seed) must return {wanted}: return one, or give from_gymnasium a spec")
    try:
        return inferred(env, env.observation_space, env.action_space, option)
    finally:
        getattr(env, "close", lambda: None)()


def inferred(
    env: Any, seen: Any, acted: Any, option: images.Option = images.PLAIN
) -> tuple[Spec, border.Reader, gym_spaces.Writer]:
    """What the spaces of gymnasium's `env`, those of one environment, mean to us."""
    native = getattr(env, "spec", None)
    name = getattr(native, "id", None) or type(env).__name__
    obs, read = gym_spaces.observation_space(seen, name=name, image=option)
    action, write = gym_spaces.action_space(acted, name)
    one_hot = type(seen).__name__ == "Discrete"
    return Spec(name, obs, action, getattr(native, "max_episode_steps", None), one_hot=one_hot), read, write


class _Loop:
    """A `Pool` of gymnasium environments in a Python loop."""

    def __init__(
        self, make_one: Callable, seeds: list[int], read: border.Reader, write: Any, discrete: bool, form: Callable
    ):
        self.seeds, self.read, self.write, self.discrete, self.form = seeds, read, write, discrete, form
        self.envs = [make_one(seed) for seed in seeds]
        self.is_last = [False] * len(seeds)

    def reset(self) -> PyTree:
        pairs = zip(self.envs, self.seeds, strict=True)
        return self.read.rows([self.form(_begin(env, seed=seed)) for env, seed in pairs])

    def step(self, action: np.ndarray) -> Outcome:
        native = self.write(action)
        row = lambda i: jax.tree.map(itemgetter((i, ...)), native)  # noqa: E731
        obs, *rest = zip(*(self._one(i, row(i)) for i in range(len(action))), strict=True)
        reward, last, terminal = map(np.array, rest)
        self.is_last = last.tolist()
        return Outcome(self.read.rows(list(map(self.form, obs))), reward, last, terminal)

    def close(self) -> None:
        for env in self.envs:
            getattr(env, "close", lambda: None)()

    def _one(self, i: int, action: np.ndarray) -> tuple[Any, Any, Any, Any]:
        """Native observation, reward, is_last and is_terminal of environment i."""
        if self.is_last[i]:
            return _begin(self.envs[i]), np.float32(0), False, False
        result, name = self.envs[i].step(int(action) if self.discrete else action), self.read.name
        obs, reward, ended, cut, _ = _returned(result, self.envs[i], "step", "obs, reward, terminated, truncated, info")
        reward, ended = border.reward(name, reward), border.flag(name, "terminated", ended)
        return obs, reward, ended | border.flag(name, "truncated", cut), ended


def _begin(env: Any, **seed: int) -> Any:
    """The first observation of an episode."""
    return _returned(env.reset(**seed), env, "reset", "obs, info")[0]


def _returned(result: Any, env: Any, method: str, names: str) -> tuple:
    """The result of a method of gymnasium; `Misfit` where it is no tuple of so many entries."""
    if isinstance(result, tuple) and len(result) == len(names.split(", ")):
        return result
    call = f"{type(env).__name__}.{method} must return ({names})"
    raise border.Misfit(f"{call}, as in gymnasium: wrap an environment of the older gym")
