"""PlaNet: learning latent dynamics for planning from pixels (Hafner et al. 2019).

Sees through convolutions or an MLP, predicts with a recurrent state-space model of Gaussian latents, acts by the
cross-entropy method in latent space, and alternates collecting an episode and fitting the model. There is no policy and
no value: at every step the best of many imagined action sequences is looked for anew.

B sequences of T records, H planning horizon, P candidates.

Where this file chooses:

- the model is trained with the one-step KL alone, as in the final version of the paper's code (overshooting is off);
- images keep their 8 bits (the code quantises them to 5 and adds noise), vectors pass through symlog;
- the end of an episode is not predicted, as in the paper: the planner believes that the task goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.control import planning
from jaxwm.control.policy import disturb
from jaxwm.errors import check_range, check_types
from jaxwm.learning import optim
from jaxwm.models import rssm
from jaxwm.models.latent_world import Carry, classic
from jaxwm.models.rssm import Gaussian, Latent
from jaxwm.nets.layers import Head, apply
from jaxwm.types import (
    FOREVER,
    Agent,
    Array,
    Batch,
    Box,
    Collect,
    Dream,
    Key,
    Record,
    Repeat,
    Spec,
    Step,
    Train,
    TrainStep,
)


@dataclass(frozen=True)
class Config:
    """Settings of PlaNet. Defaults are the published ones."""

    # Size.
    deter: int = 200
    """Width of the recurrent state."""
    hidden: int = 200
    """Width of the layers around it."""
    stoch: int = 30
    """Number of Gaussian latents."""
    units: int = 300
    """Width of the reward head and of the MLPs for vectors."""
    layers: int = 3
    """Layers of these."""
    depth: int = 32
    """Channels of the first convolution; the others have 2, 4 and 8 times as many."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, moments and losses stay float32."""

    # Data.
    envs: int = 1
    """Parallel environments of each member."""
    batch_size: int = 50
    """Sequences of an update."""
    batch_length: int = 50
    """Records of a sequence."""
    prefill: int = 2500
    """Environment steps of random play before learning starts: five episodes of 500 steps."""
    collect: int = 500
    """Environment steps between two phases of learning: one episode."""
    updates: int = 100
    """Updates of such a phase."""
    capacity: int = 1_000_000
    """Replay size of a member in environment steps (never more than the run collects)."""

    # World model.
    min_std: float = 0.1
    """Smallest standard deviation of a latent."""
    free_nats: float = 3.0
    """KL, mean over the batch, below which it is not pushed."""
    rec_scale: float = 0.5
    """Weight of the squared error of observations: 1/2 for a unit normal."""
    rew_scale: float = 10.0

    # Planner.
    plan_horizon: int = 12
    """Steps that are looked ahead."""
    candidates: int = 1000
    """Action sequences tried in each iteration."""
    elites: int = 100
    """Those of them to which the search distribution is fitted."""
    iterations: int = 10
    """Iterations for each action."""
    noise: float = 0.3
    """Standard deviation of the noise on actions while collecting."""

    # Optimiser.
    lr: float = 1e-3
    """Learning rate of Adam."""
    eps: float = 1e-4
    """Epsilon of Adam."""
    clip: float = 1000.0
    """Largest norm of the gradient."""

    def __post_init__(self):
        check_types(self)
        check_range(self, "deter hidden stoch units depth envs batch_size capacity collect", least=1)
        check_range(self, "plan_horizon candidates elites iterations", least=1)
        check_range(self, "batch_length", least=2)
        check_range(self, "layers prefill updates free_nats rec_scale rew_scale noise", least=0)
        check_range(self, "elites", most=self.candidates)
        check_range(self, "lr eps clip min_std", above=0)


PUBLISHED = Config()
MICRO = replace(
    PUBLISHED, deter=32, hidden=64, stoch=8, units=64, layers=2, depth=8, envs=4, batch_size=16, batch_length=20,
    prefill=1000, collect=100, updates=40, capacity=100_000, free_nats=1.0, rec_scale=30.0, lr=2e-3, plan_horizon=15,
    candidates=100, elites=10, iterations=4,
)  # fmt: skip
PRESETS = {"published": PUBLISHED, "micro": MICRO}
"""The paper's, and one for vectors on two CPU cores: what is seen is a few numbers, which would hardly count beside the
KL with a unit normal around each."""


class State(NamedTuple):
    """Everything that learning changes."""

    params: dict[str, Any]
    opt: Any
    hyper: dict[str, Array]
    step: Array  # updates so far


def make(spec: Spec, config: Config = PUBLISHED) -> Agent:
    """PlaNet for an environment with continuous actions; ValueError for others.

    The replay extras are the latents that acting saw: `deter [N, D]` and `stoch [N, S]`; dreams start from them.
    """
    if not isinstance(spec.action, Box):
        raise ValueError(
            f"planet plans over continuous actions (Box); {spec.name} has {spec.action}: take dreamer-v2 or dreamer-v3"
        )
    sizes = config.deter, config.hidden, config.units, config.layers, config.depth
    world = classic(
        spec, Gaussian(config.stoch, config.min_std), *sizes, ("relu", "relu"), dtype=jnp.dtype(config.dtype)
    )
    heads = {"rew": Head({"mean": 1}, config.layers, config.units, dtype=world.dyn.dtype, act="relu")}
    tx = optim.apart({"all": ("enc", "dyn", "dec", "rew")}, optim.adam(config.clip, config.eps))
    size = spec.action.size

    def planner(horizon: int, warm_start: bool) -> planning.Planner:
        return planning.cem(
            size, horizon, config.candidates, config.elites, config.iterations, momentum=0.0, init_std=1.0,
            warm_start=warm_start, bounded=False,
        )  # fmt: skip

    replan = planner(config.plan_horizon, False)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = world.init(key, heads)
        return State(params, tx.init(params), optim.numbers(hyper), jnp.zeros((), jnp.int32))

    def reset(state: State, num_envs: int) -> Carry:
        return world.reset(num_envs)

    def reward(params: Any, latent: Latent) -> Array:
        return apply(heads["rew"], params["rew"], latent.feat())["mean"][..., 0]

    def score(params: Any, start: Latent) -> planning.Score:
        """Summed predicted rewards `[P]` of action sequences `[P, H, A]` from one latent."""

        def of(actions: Array, key: Key) -> Array:
            starts = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(actions), *x.shape)), start)
            latents = world.open_loop(params, starts, actions.swapaxes(0, 1), key)
            return reward(params, latents).sum(0)

        return of

    def act(state: State, carry: Carry, step: Step, key: Key, mode: str) -> tuple[Carry, Array, dict[str, Array]]:
        def choose(latent: Latent, key: Key) -> Array:
            def one(start: Latent, key: Key) -> Array:
                return replan.plan(score(state.params, start), replan.start(), key)[1]

            k_plan, k_noise = jax.random.split(key)
            action = jax.vmap(one)(latent, jax.random.split(k_plan, len(step.reward)))
            if mode == "greedy":
                return action
            return disturb(spec.action, action, state.hyper["noise"], k_noise)

        carry = world.act(state, carry, step, key, mode, choose)
        return carry, carry.action, world.pack(carry.latent)

    def loss(params: Any, record: Record, uniform: Array) -> tuple[Array, dict[str, Array]]:
        _, losses, metrics = world.predictions(params, heads, record, uniform)
        kl = rssm.joint(losses["dyn"], losses["rep"])
        total = config.rec_scale * losses["rec"] + config.rew_scale * losses["rew"] + jnp.maximum(kl, config.free_nats)
        return total, metrics | {"loss": total}

    def update(state: State, batch: Batch, key: Key) -> tuple[State, dict, dict[str, Array]]:
        uniform = jax.random.uniform(key, (*batch.record.reward.shape, config.stoch))
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch.record, uniform)
        direction, opt = tx.update(grads, state.opt, state.params)
        params = jax.tree.map(lambda p, d: p - state.hyper["lr"] * d, state.params, direction)
        metrics["grad_norm"] = optim.norm(grads)
        return State(params, opt, state.hyper, state.step + 1), {}, metrics

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        """As in `Agent.imagine`; without actions one plan is made for the whole dream, where the dream starts."""
        world.check_dream(context, actions, horizon)
        k_filter, k_plan, k_dream = jax.random.split(key, 3)
        starts = world.last(state.params, context, k_filter)
        if actions is None:
            whole = planner(horizon, True)  # what is kept for the next step is the rest of the plan

            def one(start: Latent, key: Key) -> Array:
                memory, first = whole.plan(score(state.params, start), whole.start(), key)
                return jnp.concatenate([first[None], memory.mean[:-1]])

            actions = jax.vmap(one)(starts, jax.random.split(k_plan, len(context.reward)))
        latents = world.open_loop(state.params, starts, actions.swapaxes(0, 1), k_dream)
        obs, latents = jax.tree.map(lambda x: x.swapaxes(0, 1), (world.decode(state.params, latents), latents))
        rewards = reward(state.params, latents)
        return Dream(obs, rewards, jnp.ones_like(rewards), actions, latents)

    steps = {"all": TrainStep(update, config.batch_size, config.batch_length)}
    return Agent(init, reset, act, steps, imagine, schedule(config), dict(lr=config.lr, noise=config.noise))


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random episodes, then fitting the model and collecting one episode more in turn."""
    prefill = max(config.prefill, config.envs * config.batch_length)
    return Collect(prefill, "random"), Repeat(FOREVER, (Train("all", config.updates), Collect(config.collect)))
