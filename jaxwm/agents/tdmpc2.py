"""TD-MPC2: planning in a latent world that is learned without a decoder (Hansen et al. 2024).

Sees any mix of sensors as a latent of simplices (SimNorm); predicts the next latent, the reward and, where asked for,
the end; values are an ensemble of distributions. Acts by MPPI: plans of three steps are judged by predicted rewards and
the value at their end, and some of the plans are a learned policy's. Collects a step, then learns once.

Letters: N environments, B batch, H horizon, L numbers of a latent, A actions, Q value networks, K bins, P plans.

Where paper and official code differ, this follows the code. What differs from the code:

- model and policy learn from the same weights in one step, each with its own clipping (there the policy sees the model
  after its step);
- vectors pass through symlog; the encoder's hidden layers, and the convolutions for images, are those of this library
  (RMS norm, SiLU), and weights start as in all systems here. There is no random shift of images;
- values are scaled by moving percentiles, not by the moving distance between them (`ReturnRange`);
- dropout touches the value loss only; one pair of value networks judges all plans of a step;
- windows may cross the end of an episode, across which nothing is learned; there all windows lie within one;
- one setting for sizes of actions: no extra iterations for large ones (`iterations`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxwm import spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import actor_critic as ac
from jaxwm.control import planning
from jaxwm.control.policy import forced
from jaxwm.distributions import SymlogTwoHot, TanhNormal, even_bins, sg
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, Several, check_bins, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import PLAIN, Routes, routes
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.models.joint_embedding import World
from jaxwm.nets.encoders import Encoder
from jaxwm.nets.layers import apply
from jaxwm.nets.simnorm import Normed
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, prefill
from jaxwm.types import Acted, Agent, Array, Batch, Box, Dream, Key, Record, Spec, Step, TrainStep, Varies, Word

LOG_STD = -10.0, 2.0  # Bounds of the policy's log standard deviation.
MODEL = ("enc", "emb", "dyn", "rew", "end", "val")
"""Components that learn together; the policy, "pol", learns on its own. "end" is there where episodes end."""


@dataclass(frozen=True)
class Config:
    """Settings of TD-MPC2; defaults are those of the official code, with 5 million parameters."""

    # Size.
    latent: Count = 512  # Numbers of a latent, L.
    group: Several = 8  # Numbers of a simplex of the latent.
    enc_layers: Count = 2  # Layers from the observation to the latent, where it is no image.
    enc_units: Count = 256  # Width of their hidden layers.
    depth: Count = 32  # Channels of the first convolution, where there are images.
    layers: Natural = 2  # Hidden layers of all other networks.
    units: Count = 512  # Their width.
    values: Several = 5  # Value networks, Q.
    dropout: float = 0.01  # Share of the first hidden layer of a value network that is left out in learning.
    bins: int = 101  # Bins of rewards and values, K.
    most: Positive = 10.0  # The last bin, in symlog space; the first is minus this.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, moments, norms and losses stay float32. Use bfloat16 on GPUs and TPUs."""
    # Data.
    envs: Count = 1  # Parallel environments of each member.
    batch_size: Count = 256  # Windows of an update.
    updates_per_step: Count = 1  # Updates after each environment step.
    prefill: Count = 2500  # Environment steps of random play before learning starts.
    first_updates: Natural = 2500  # Updates after these, before the first plan.
    capacity: int = 1_000_000  # Replay size of a member in environment steps (never more than the run collects).
    # Losses.
    horizon: Count = 3  # Steps of a window, and of a plan, H.
    rho: Fraction = 0.5  # Weight of a step of a window over that before it.
    consistency_scale: Amount = 20.0  # Weight of the distance between predicted and encoded latents.
    reward_scale: Amount = 0.1  # Weight of the loss of rewards, in nats.
    value_scale: Amount = 0.1  # Weight of the loss of values, in nats.
    end_scale: Amount = 1.0  # Weight of the loss of ends, in nats.
    episodic: bool = False  # Predict ends; otherwise no state is an end in plans (targets always know it).
    discount_length: Positive = 5.0
    """The discount looks ahead as far as an episode's time limit over this number: 1 - 1 / (limit / number)."""
    discount_least: Fraction = 0.95  # Least discount.
    discount_most: Fraction = 0.995  # Greatest discount; also that without a time limit.
    entropy: Varies[Amount] = 1e-4  # Weight of the policy's entropy, next to values in units of their range.
    tau: Varies[Fraction] = 0.01  # Share of the value networks that goes into the slow ones with each update.
    lr: Varies[Positive] = 3e-4  # Learning rate.
    enc_rate: Positive = 0.3  # Learning rate of the encoder in units of `lr`.
    clip: Positive = 20.0  # Largest norm of the gradients of the model, and of the policy.
    # Planning.
    candidates: Count = 512  # Plans of an iteration, P.
    elites: int = 64  # Best plans, to which the next iteration moves.
    policy_plans: int = 24  # Plans among the candidates that are the policy's.
    iterations: Count = 6  # Iterations of the planner; the official code takes 8 for 20 or more actions.
    temperature: Positive = 0.5  # Weight of a return in the exponent.
    min_std: Amount = 0.05  # Least standard deviation of actions in a plan.
    max_std: Positive = 2.0  # The greatest one, with which the planner begins.

    def __post_init__(self):
        check_types(self)
        check_bins(self.bins)
        check_number("dropout", self.dropout, least=0, most=0.9)
        check_number("elites", self.elites, least=1, most=self.candidates, whole=True)
        check_number("policy_plans", self.policy_plans, least=0, most=self.candidates - 1, whole=True)
        check_number("capacity", self.capacity, least=(self.horizon + 1) * self.envs, whole=True)
        check_number("discount_most", self.discount_most, least=self.discount_least, most=1)
        if self.latent % self.group:
            raise ValueError(f"latent must be a multiple of group ({self.group}), not {self.latent}")


def discount_of(config: Config, limit: int | None) -> float:
    """The discount of episodes with a time limit in environment steps (appendix H)."""
    if limit is None:
        return config.discount_most
    ahead = limit / config.discount_length
    return min(max(1 - 1 / ahead, config.discount_least), config.discount_most)


# --- Networks ---------------------------------------------------------------------------------------------------------
class Networks(NamedTuple):
    """The world, the policy and the value networks, whose parameters are stacked, `[Q, ...]`."""

    world: World
    pol: Normed
    val: Normed
    config: Config
    discount: float

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters by component."""
        k_world, k_pol, k_val = jax.random.split(key, 3)
        latent = jnp.zeros((1, self.config.latent))
        pair = jnp.concatenate([latent, jnp.zeros((1, self.world.spec.action.size))], -1)
        val = jax.vmap(lambda k: self.val.init(k, pair))(jax.random.split(k_val, self.config.values))
        return self.world.init(k_world) | {"pol": self.pol.init(k_pol, latent), "val": val}

    def policy(self, params: Any, latent: Array) -> TanhNormal:
        """The policy at latents `[..., L]`: a normal of each action, squashed by tanh."""
        mean, raw = jnp.split(apply(self.pol, params["pol"], latent), 2, -1)
        low, high = LOG_STD
        return TanhNormal(mean, jnp.exp(low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)))

    def values(self, val: Any, latent: Array, action: Array, factors: Array | None = None) -> SymlogTwoHot:
        """Values `[Q, ...]` from the parameters of the value networks; `factors [Q, ..., units]` are dropout's."""
        pair = jnp.concatenate([latent, action], -1)
        if factors is None:
            logits = jax.vmap(lambda one: apply(self.val, one, pair))(val)
        else:
            logits = jax.vmap(lambda one, factor: apply(self.val, one, pair, factor))(val, factors)
        return SymlogTwoHot(logits, self.world.bins)

    def two_values(self, val: Any, latent: Array, action: Array, pair: Array) -> Array:
        """Values `[2, ...]` of two of the networks, int32 `pair [2]`."""
        chosen = jax.tree.map(lambda x: x[pair], val)
        return self.values(chosen, latent, action).mean()


def build(spec: Spec, config: Config, routes: Routes = PLAIN) -> Networks:
    """The networks of an agent; ValueError for observations that no encoder sees and actions that are no `Box`."""
    if not isinstance(spec.action, Box):
        raise ValueError(
            f"tdmpc2 plans over continuous actions (Box); {spec.name} has {spec.action}: take an environment such as "
            "gymnax/Pendulum-v1 or dmc/CartpoleSwingup, or dreamer-v3 or muzero for discrete actions"
        )
    dtype = jnp.dtype(config.dtype)
    enc = Encoder(spec.obs, config.depth, config.enc_units, config.enc_layers - 1, dtype, routes)
    net = partial(Normed, config.layers, config.units, dtype=dtype)
    emb = Normed(0, 0, config.latent, config.group, dtype=dtype)
    end = net(1) if config.episodic else None
    bins = even_bins(config.bins, config.most)
    dyn, rew = net(config.latent, config.group), net(config.bins, outscale=0.0)
    world = World(spec, enc, emb, dyn, rew, end, bins, routes)
    policy, value = net(2 * spec.action.size), net(config.bins, outscale=0.0)
    return Networks(world, policy, value, config, discount_of(config, spec.max_steps))


def first_two(key: Key, count: int) -> Array:
    """Two different numbers below `count`, int32 `[2]`."""
    return jax.random.permutation(key, count)[:2]


# --- Losses -----------------------------------------------------------------------------------------------------------
class Noise(NamedTuple):
    """The random numbers of an update."""

    target: Array  # [H, B, A], normal: actions behind the targets
    policy: Array  # [H + 1, B, A], normal: actions of the policy that learns
    pairs: Array  # int32 [2, 2]: the value networks of the targets, and those that the policy climbs
    factors: Array | None = None  # [Q, H, B, units], of dropout


def td_targets(nets: Networks, params: Any, slow: Any, ahead: Array, record: Record, noise: Noise) -> Array:
    """r + gamma min Q(z', pi(z')) `[H, B]` (eq. 4), from latents `ahead [H, B, L]` that were encoded, as a constant."""
    reward, terminal = record.reward[:, 1:].T, record.is_terminal[:, 1:].T
    chex.assert_equal_shape_prefix((ahead, reward, noise.target), 2)
    action = nets.policy(params, ahead).pick(noise.target)
    value = nets.two_values(slow, ahead, action, noise.pairs[0]).min(0)
    return sg(reward + nets.discount * (1.0 - terminal) * value)


def model_loss(
    nets: Networks, params: Any, slow: Any, record: Record, noise: Noise, share: Share = ALONE
) -> tuple[Array, tuple[Array, Array, dict[str, Array]]]:
    """The loss of the world and the value networks (eq. 3) on windows `[B, H + 1]`.
    With it the latents `[H + 1, B, L]`, what each counts `[H + 1, B]`, and metrics."""
    config, world, steps = nets.config, nets.world, nets.config.horizon
    chex.assert_shape(record.reward, (None, steps + 1))
    later = jax.tree.map(lambda x: x[:, 1:].swapaxes(0, 1), record.obs)
    ahead = sg(world.encode(params, later))
    actions = record.action[:, :-1].swapaxes(0, 1)
    latent = world.unroll(params, world.encode(params, jax.tree.map(lambda x: x[:, 0], record.obs)), actions)
    weight = jnp.cumprod(1.0 - record.is_first[:, 1:].T, 0)  # nothing is learned across the end of an episode

    def mean(x: Array) -> Array:
        """Of a term `[H, B]`, steps weighted by rho^t."""
        return (config.rho ** jnp.arange(steps) * share.weighted_mean(x, weight, axis=1)).mean()

    target = td_targets(nets, params, slow, ahead, record, noise)
    values = nets.values(params["val"], latent[:-1], actions, noise.factors)
    losses = {
        "consistency": mean(jnp.square(latent[1:] - ahead).mean(-1)),
        "reward": mean(world.reward(params, latent[:-1], actions).loss(record.reward[:, 1:].T)),
        "value": mean(jax.vmap(lambda one: SymlogTwoHot(one, values.bins).loss(target))(values.logits).mean(0)),
    }
    if (logit := world.ended(params, latent[1:])) is not None:
        losses["end"] = mean(jax.nn.softplus(logit) - logit * record.is_terminal[:, 1:].T)
    total = sum((getattr(config, f"{name}_scale") * loss for name, loss in losses.items()), jnp.zeros(()))
    metrics = {f"loss/{name}": loss for name, loss in losses.items()} | {"value": mean(values.mean().mean(0))}
    counts = jnp.concatenate([jnp.ones_like(weight[:1]), weight])
    return total, (latent, counts, metrics | {"target": mean(target)})


def policy_loss(
    nets: Networks, params: Any, state: Any, latent: Array, weight: Array, noise: Noise, share: Share = ALONE
) -> tuple[Array, tuple[ac.ReturnRange, dict[str, Array]]]:
    """The loss of the policy (eq. 5) at latents `[H + 1, B, L]`, which count `weight [H + 1, B]`: values in units of
    their range, and entropy. `params` are the policy's; all else is constant. The new range of values, and metrics."""
    chex.assert_equal_shape_prefix((latent, weight, noise.policy), 2)
    held = sg(state.params)
    action, log_prob = nets.policy(params, sg(latent)).scored(noise.policy)
    value = nets.two_values(held["val"], sg(latent), action, noise.pairs[1]).mean(0)
    entropy = -log_prob.sum(-1)
    returns = state.returns.update(share.gather(sg(value[0])), state.hyper["tau"])
    gain = value / returns.scale() + state.hyper["entropy"] * entropy
    decay = nets.config.rho ** jnp.arange(len(latent))
    mean = lambda x: share.weighted_mean(x, weight, axis=1)  # noqa: E731
    total = -(decay * mean(gain)).mean()
    return total, (returns, {"loss/policy": total, "entropy": mean(entropy)[0], "value_range": returns.scale()})


def loss(nets: Networks, params: Any, state: Any, record: Record, noise: Noise, share: Share = ALONE) -> Losses:
    """Both losses together, each with the gradient of its own components only; aux is the range of values."""
    model, (latent, weight, metrics) = model_loss(nets, params, state.slow, record, noise, share)
    policy, (returns, more) = policy_loss(nets, params, state, latent, weight, noise, share)
    return model + policy, (returns, {"loss": model} | metrics | more)


# --- Planning ---------------------------------------------------------------------------------------------------------
def plan_value(nets: Networks, params: Any, latent: Array, actions: Array, noise: Array, pair: Array) -> Array:
    """The return `[P]` of plans `[P, H, A]` from a latent `[L]` (eq. 6): predicted rewards, then the value of the
    policy's action at the end, which `noise [P, A]` decides, as the mean of two networks."""
    chex.assert_rank((latent, actions, noise), (1, 3, 2))
    world, gamma = nets.world, nets.discount
    starts, plans = jnp.broadcast_to(latent, (len(actions), len(latent))), actions.swapaxes(0, 1)
    seen = world.unroll(params, starts, plans)
    reward = world.reward(params, seen[:-1], plans).mean()  # [H, P]
    alive = jnp.cumprod(world.going_on(params, seen[1:]) > 0.5, 0).astype(jnp.float32)
    alive = jnp.concatenate([jnp.ones_like(alive[:1]), alive])
    last = nets.policy(params, seen[-1]).pick(noise)
    value = nets.two_values(params["val"], seen[-1], last, pair).mean(0)
    discount = gamma ** jnp.arange(len(plans))[:, None]
    return (discount * alive[:-1] * reward).sum(0) + gamma ** len(plans) * alive[-1] * value


def follow(nets: Networks, params: Any, latent: Array, noise: Array) -> Array:
    """The plans `[P, H, A]` of the policy from a latent `[L]`; `noise [H, P, A]` decides the actions."""

    def step(latent: Array, noise: Array) -> tuple[Array, Array]:
        action = nets.policy(params, latent).pick(noise)
        return nets.world.advance(params, latent, action), action

    _, actions = jax.lax.scan(step, jnp.broadcast_to(latent, (noise.shape[1], len(latent))), noise)
    return actions.swapaxes(0, 1)


def planner(nets: Networks, returns: Literal["elite", "noisy"]) -> planning.Planner:
    """MPPI as in the settings."""
    c, size = nets.config, nets.world.spec.action.size
    return planning.mppi(
        size, c.horizon, c.candidates, c.elites, c.iterations, c.temperature, c.max_std, c.min_std, returns=returns
    )


def plan(
    nets: Networks, params: Any, memory: planning.Memory, latent: Array, key: Key, returns: Literal["elite", "noisy"]
) -> tuple[planning.Memory, Array]:
    """Plan from latents `[N, L]` (algorithm 1): the memories of the next step, and actions `[N, A]`."""
    size, config = nets.world.spec.action.size, nets.config
    k_pair, k_plan = jax.random.split(key)
    pair, search = first_two(k_pair, config.values), planner(nets, returns)

    def one(memory: planning.Memory, latent: Array, key: Key) -> tuple[planning.Memory, Array]:
        def score(actions: Array, key: Key) -> Array:
            noise = jax.random.normal(key, (len(actions), size))
            return plan_value(nets, params, latent, actions, noise, pair)

        k_policy, k_search = jax.random.split(key)
        noise = jax.random.normal(k_policy, (config.horizon, config.policy_plans, size))
        return search.plan(score, memory._replace(kept=follow(nets, params, latent, noise)), k_search)

    return jax.vmap(one)(memory, latent, jax.random.split(k_plan, len(latent)))


# --- Wiring -----------------------------------------------------------------------------------------------------------
class State(NamedTuple):
    """A learner's state; `slow` are the slow value networks, `returns` the range of values."""

    params: Any
    opt: Any
    hyper: dict[str, Array]
    step: Array
    slow: Any
    returns: ac.ReturnRange


def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build TD-MPC2 for an environment with continuous actions; ValueError for others. Nothing is kept in the replay;
    the policy's memory is the last plan, shifted by a step."""
    nets = build(spec, config, routes())
    parts = tuple(name for name in MODEL if config.episodic or name != "end")
    tx = optim.apart({"model": parts, "policy": ("pol",)}, optim.adam(config.clip, 1e-8))

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = nets.init(key)
        slow, zero = jax.tree.map(jnp.copy, params["val"]), jnp.zeros((), jnp.int32)
        return State(params, tx.init(params), optim.numbers(hyper), zero, slow, ac.initial_range())

    def reset(state: State, num_envs: int) -> planning.Memory:
        start = planner(nets, "elite").start()
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *x.shape)), start)

    def act(state: State, carry: planning.Memory, step: Step, key: Key, mode: str) -> Acted:
        if (action := forced(spec.action, step, key, mode)) is not None:
            return carry, action, {}
        memory = jax.tree.map(lambda x: jnp.where(spaces.wide(step.is_first, x), 0.0, x), carry)
        latent = nets.world.encode(state.params, step.obs)
        memory, action = plan(nets, state.params, memory, latent, key, "noisy" if mode == "explore" else "elite")
        return memory, action, {}

    def update(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        record = share.local_rows(batch.record)
        noise = draw_noise(nets, len(record.reward), key, share)
        objective = lambda params: loss(nets, params, state, record, noise, share)  # noqa: E731
        rates = {
            name: state.hyper["lr"] * (config.enc_rate if name in ("enc", "emb") else 1.0) for name in state.params
        }
        state, returns, metrics = gradient_step(state, objective, tx, rates, share=share)
        slow = ac.track(state.params["val"], state.slow, state.hyper["tau"])
        return state._replace(slow=slow, returns=returns), {}, metrics

    steps = {"all": TrainStep(update, config.batch_size, config.horizon + 1, shared=True)}
    return Agent(init, reset, act, steps, partial(dream, nets), schedule(config), hyper_of(config))


def draw_noise(nets: Networks, rows: int, key: Key, share: Share = ALONE) -> Noise:
    """The random numbers of an update of `rows` windows."""
    config, size = nets.config, nets.world.spec.action.size
    k_target, k_policy, k_pairs, k_drop = jax.random.split(key, 4)
    pairs = jax.vmap(lambda k: first_two(k, config.values))(jax.random.split(k_pairs))
    factors = None
    if config.dropout and config.layers:
        uniform = share.uniform(k_drop, (config.values, config.horizon, rows, config.units), 2)
        factors = (uniform >= config.dropout) / (1.0 - config.dropout)
    target = share.normal(k_target, (config.horizon, rows, size), 1)
    return Noise(target, share.normal(k_policy, (config.horizon + 1, rows, size), 1), pairs, factors)


def dream(nets: Networks, state: State, context: Record, given: Array | None, key: Key, horizon: int) -> Dream:
    """See `Agent.imagine`; without `given` actions the learned policy chooses them, without planning."""
    spec, world, params = nets.world.spec, nets.world, state.params
    spaces.check_dream(spec.action, context, given, horizon)
    start = world.encode(params, jax.tree.map(lambda x: x[:, -1], context.obs))

    def step(latent: Array, x: tuple[Array, Array | None]) -> tuple[Array, Dream]:
        noise, action = x
        action = nets.policy(params, latent).pick(noise) if action is None else action
        after = world.advance(params, latent, action)
        reward = world.reward(params, latent, action).mean()
        return after, Dream(None, reward, world.going_on(params, after), action, after)

    noise = jax.random.normal(key, (horizon, len(start), spec.action.size))
    actions = None if given is None else given.swapaxes(0, 1)
    return jax.lax.scan(step, start, (noise, actions))[1].swapped()


def schedule(config: Config) -> tuple[Word, ...]:
    """Random play and what can be learned from it; then a row of environment steps and its updates in turn."""
    body = Collect(config.envs), Train("all", config.updates_per_step * config.envs)
    first = (Train("all", config.first_updates),) if config.first_updates else ()
    return prefill(config.prefill, config.envs, config.horizon + 1), *first, Repeat(FOREVER, body)


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {
    "published": Config(),
    "small": Config(
        latent=64, enc_units=64, units=64, dropout=0.0, batch_size=64, prefill=1000, first_updates=1000,
        capacity=100_000, candidates=128, elites=16, policy_plans=8, iterations=4, lr=1e-3,
    ),
}  # fmt: skip
"""Those of the official code for tasks of 500 steps (prefill: five episodes), and a small one for two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="small", year=2024, env="gymnax/Pendulum-v1", steps=10_000, actions=("Box",),
    offline=True, copies={"slow": "val"},
    summary="planning with a policy and values in a latent world without a decoder (Hansen et al. 2024)",
    paper="Hansen et al., TD-MPC2: Scalable, Robust World Models for Continuous Control",
    sees="CNN or MLP; a latent of simplices (SimNorm)",
    predicts="MLP: next latent, by joint embedding, reward and end; five value networks; all by classification",
    acts="MPPI over latent plans of three steps, some of them a policy's, with the value at their end",
)  # fmt: skip
