"""Small agents and environments whose every number can be checked by hand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs.pure import from_functions
from jaxwm.types import (
    FOREVER,
    Agent,
    Collect,
    Data,
    Discrete,
    Env,
    Record,
    Repeat,
    Spec,
    Step,
    Train,
    TrainStep,
)  # fmt: skip

SPEC = Spec("toy/Count", jax.ShapeDtypeStruct((1,), jnp.float32), Discrete(3), max_steps=5)


def counting_env(num_envs: int, length: int = 5) -> Env:
    """Episodes of `length` steps; environment n starts at step n % length. obs: step number, reward: action."""

    def reset(key):
        del key
        time = jnp.arange(num_envs, dtype=jnp.int32) % length
        return time, _step(time, jnp.zeros(num_envs), jnp.ones(num_envs, bool), jnp.zeros(num_envs, bool))

    def step(time, action):
        over = time >= length
        time = jnp.where(over, 0, time + 1)
        return time, _step(time, jnp.where(over, 0.0, action), over, time >= length)

    return Env(SPEC, reset, step, num_envs, True)


def _step(time, reward, first, last):
    return Step(time[:, None].astype(jnp.float32), reward.astype(jnp.float32), first, last, last)


def footage(num_envs: int) -> Data:
    """Recordings without end of a 2 x 2 square on 8 x 8 that moves by its action, round the edges; episodes of 10."""
    rng = np.random.default_rng(0)
    action = rng.integers(0, 4, (60, num_envs)).astype(np.int32)
    first = np.broadcast_to(np.arange(60)[:, None] % 10 == 0, action.shape)
    moves = np.array([(-2, 0), (2, 0), (0, -2), (0, 2)])
    obs, corner = np.zeros((60, num_envs, 8, 8, 1), np.uint8), np.zeros((num_envs, 2), int)
    for t in range(60):
        corner = 2 * rng.integers(0, 4, (num_envs, 2)) if t % 10 == 0 else (corner + moves[action[t - 1]]) % 8
        for n in range(num_envs):
            obs[t, n, corner[n, 0] : corner[n, 0] + 2, corner[n, 1] : corner[n, 1] + 2] = 255
    last = np.roll(first, -1, 0)
    whole = Record(obs, np.zeros(action.shape, np.float32), first, last, np.zeros_like(last), action, {})

    def read(start: int, count: int) -> Record:
        return jax.tree.map(lambda x: x[(start + np.arange(count)) % 60], whole)

    spec = Spec("toy/Footage", jax.ShapeDtypeStruct((8, 8, 1), np.uint8), Discrete(4), 10)
    return Data(spec, read, 60, num_envs, "toy/Footage")


def on_host(pure: Env) -> Env:
    """The same environment behind host functions, for comparing the two loops."""
    reset, step = jax.jit(jax.vmap(pure.reset)), jax.jit(jax.vmap(pure.step))

    def as_numpy(handle, out):
        return handle, jax.tree.map(np.asarray, out)

    return Env(
        pure.spec,
        lambda keys: as_numpy(*reset(keys)),
        lambda handle, action: as_numpy(*step(handle, jnp.asarray(action))),
        pure.num_envs,
        False,
    )


class ToyState(NamedTuple):
    params: Any
    opt: Any
    hyper: Any
    step: Any


def toy_agent(length: int = 4, batch: int = 3, schedule=None, until=None, sampler="online") -> Agent:
    """Acts at random, keeps an average of sampled rewards, writes the update number back into the replay."""

    def init(key, hyper):
        params = {"mean": jnp.zeros(()), "noise": jax.random.normal(key)}
        return ToyState(
            params, (), {k: jnp.asarray(v, jnp.float32) for k, v in hyper.items()}, jnp.zeros((), jnp.int32)
        )

    def reset(state, num_envs):
        return jnp.zeros(num_envs, jnp.int32)

    def act(state, carry, step, key, mode):
        carry = jnp.where(step.is_first, 0, carry + 1)
        action = jax.random.randint(key, step.reward.shape, 0, 3)
        return (
            carry,
            jnp.zeros_like(action) if mode == "greedy" else action,
            {"since": carry, "seen": jnp.zeros_like(carry)},
        )

    def update(state, batch, key):
        reward = batch.record.reward.mean() + 0.01 * jax.random.normal(key)
        mean = state.params["mean"] + state.hyper["lr"] * (reward - state.params["mean"])
        feedback = {"seen": jnp.full_like(batch.record.extras["seen"], state.step + 1)} if until is None else {}
        state = state._replace(params=state.params | {"mean": mean}, step=state.step + 1)
        return state, feedback, {"mean": mean, "updates": state.step.astype(jnp.float32)}

    body = (Collect(4), Train("average", 2, until))
    schedule = schedule or (Collect(16, "random"), Repeat(FOREVER, body))
    return Agent(init, reset, act, {"average": TrainStep(update, batch, length, sampler)}, None, schedule, {"lr": 0.1})


IMAGE = jax.ShapeDtypeStruct((64, 64, 3), jnp.uint8)


def blinking(num_envs: int) -> Env:
    """Images whose brightness is the time; an episode lasts while one goes right, 8 steps at most."""

    def reset(key):
        return (jnp.zeros((), jnp.int32), key), jnp.zeros(IMAGE.shape, jnp.uint8)

    def step(key, state, action):
        time = state[0] + 1
        obs = jnp.full(IMAGE.shape, 30 * time, jnp.uint8)
        return (time, state[1]), obs, jnp.where(action == 2, 1.0, 0.0), (action != 2) & (time > 2), time >= 8

    return from_functions(Spec("my/Blinking", IMAGE, Discrete(3), 8), reset, step, num_envs)


def lit(num_envs: int) -> Env:
    """One step: planes whose left or right half is lit; reward 1 for the action on that side. A random policy's return
    is 1/2."""

    def show(side):
        return jnp.broadcast_to((jnp.arange(4) // 2 == side)[None, :, None], (4, 4, 1))

    def reset(key):
        side = jax.random.randint(key, (), 0, 2)
        return side, show(side)

    def step(key, side, action):
        return side, show(side), (action == side).astype(jnp.float32), True, False

    planes = jax.ShapeDtypeStruct((4, 4, 1), jnp.bool_)
    return from_functions(Spec("my/Lit", planes, Discrete(2), 1), reset, step, num_envs)


def marked(life, mark: int):
    """The same life with another average, so that restored ones can be told apart."""
    life = jax.tree.map(jnp.copy, life)
    return life._replace(agent=life.agent._replace(params=jax.tree.map(lambda x: x * 0 + mark, life.agent.params)))
