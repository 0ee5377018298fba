"""MuZero (Schrittwieser et al. 2020) with reanalysis, and what EfficientZero (Ye et al. 2021) adds to it.

A learned model predicts rewards, values and policies, and a tree search with it chooses actions and makes the targets:

1. `act` looks at the observation, searches, acts, and keeps the search's policy and value in the replay;
2. `learn` unrolls the model K steps from a position under the actions that were taken, and teaches it the rewards, the
   n-step values and the policies of the searches on the way (Schrittwieser et al. 2020, eq. 1);
3. `reanalyse` repeats the search of old positions with the target network and writes the result back (Schrittwieser et
   al. 2021), so that every later update finds the better targets.

The three additions of EfficientZero are switches (see `agents.efficientzero`): `consistency`, `prefix`, `correction`.
Where actions are not a small set, the search chooses among `sampled` ones drawn from the policy (Hubert et al. 2021).

N environments, B sequences, L = K + n + 1 records of a sequence, A options of a node: the actions, or the sampled ones.

Choices where paper and code differ or are silent: the value transform is Pohlen's (the preprint misprints it);
bootstrap values come from the target network (`bootstrap="network"`, as in EfficientZero) or from the searches
("search", as in MuZero); after an end the state is absorbing, with value and reward 0, random actions and no policy
target; a time limit is no end: what follows it is not learned. A priority is stored with the last record of its
sequence, which is when the sequence becomes complete. RMS norm stands for batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm import replay, spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import search
from jaxwm.control.policy import Actor, action_distribution, forced
from jaxwm.distributions import sg
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import merge
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, every, gradient_step
from jaxwm.models.value_equivalent import Memory, Net, Support, check, similarity
from jaxwm.nets import sensors
from jaxwm.nets.layers import apply
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, pace, prefill
from jaxwm.types import Acted, Agent, Array, Batch, Discrete, Dream, Key, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of MuZero; defaults are those published for Atari, with reanalysis."""

    # Search.
    search: Literal["puct", "gumbel"] = "puct"  # Kind of tree search.
    simulations: int = 50  # Simulations of each search.
    considered: int = 16  # Actions that a Gumbel root draws.
    sampled: Count = 20  # Actions drawn at each node where they are not a small set (vectors).
    dirichlet: float = 0.25  # Concentration of the noise at a PUCT root.
    noise: float = 0.25  # Share of that noise in the prior.
    cooling: Natural = 1_000_000
    """Updates of a run over which actions become greedier: temperature 1, half-way 0.5, then 0.25; 0 keeps it at 1."""
    # Sizes.
    residual: bool = True  # Residual networks on planes, or else MLPs (and convolutions for images).
    width: Count = 256  # Channels of the latent planes, or its numbers.
    units: Count = 256  # Units of hidden layers.
    layers: Natural = 16  # Residual blocks of the representation and of the dynamics, or layers of the MLPs.
    depth: Count = 16  # Channels of the first convolution for images without residual networks, and of the decoder.
    bins: int = 601  # Bins of value and reward.
    bound: Positive = 300.0  # Greatest squashed value or reward.
    # Data.
    envs: Count = 32  # Parallel environments of each member.
    batch_size: Count = 1024  # Sequences of an update.
    unroll: Count = 5  # Steps the model is unrolled, K.
    td_steps: Count = 5  # Rewards before the bootstrap value, n: 5 with reanalysis, 10 without.
    bootstrap: Literal["network", "search"] = "network"
    """Bootstrap values: the target network's, or those of the stored searches."""
    train_ratio: Positive = 2.0  # Sequences learned from for each step played.
    reanalyse: Natural = 1024  # Positions that are searched again before each update; 0: none.
    prefill: Natural = 2000  # Environment steps of random play before learning starts.
    capacity: Count = 1_000_000  # Replay size of a member in environment steps (never more than the run collects).
    alpha: Amount = 1.0  # Power of the priorities, which are errors of values; 0 samples uniformly.
    beta: Amount = 1.0  # Power of the weights that make up for priorities.
    # Losses.
    discount: Fraction = 0.997  # Discount of rewards per step.
    value_scale: Amount = 0.25  # Weight of the value's loss.
    entropy: Amount = 0.0  # Weight of the policy's entropy.
    consistency: Amount = 0.0
    """EfficientZero: weight of the agreement of unrolled latents with those of what is then seen; 0: off."""
    projection: Count = 1024  # Width of the projection in which they are compared.
    prefix: bool = False  # EfficientZero: predict sums of rewards (value prefixes) with an LSTM.
    correction: Natural = 0
    """EfficientZero: updates of a run; targets of old data use fewer real rewards, by its age. 0: off."""
    augment: bool = False  # Shift images by up to four pixels and change their brightness, in learning.
    decoder: bool = False  # Learn to show what is imagined; nothing else learns from it.
    # Optimiser.
    optimizer: Literal["sgd", "adam"] = "sgd"  # SGD has momentum 0.9.
    lr: Varies[Positive] = 0.05  # Learning rate.
    lr_decay_updates: Natural = 350_000  # Updates after which it falls to a tenth; 0: never.
    l2: Varies[Amount] = 1e-4  # Weight of the squared norm of the parameters.
    clip: Positive = 5.0  # Largest norm of the gradient.
    target_every: Count = 200  # Updates between two copies to the target network.

    def __post_init__(self):
        check_types(self)
        check_number("bins", self.bins, least=3, whole=True)
        check_number("capacity", self.capacity, least=self.length * self.envs, whole=True)
        search.check(self.tree())

    @property
    def length(self) -> int:
        """Records of a sequence, L."""
        return self.unroll + self.td_steps + 1

    def tree(self) -> search.Settings:
        """The settings of the search. Values have no known bounds."""
        numbers = self.simulations, self.considered
        return search.Settings(self.search, *numbers, dirichlet=self.dirichlet, noise=self.noise)


# --- Targets ----------------------------------------------------------------------------------------------------------
class Targets(NamedTuple):
    """What positions 0 to K of sequences should say, `[B, K + 1]`, each with where it counts."""

    value: Array
    value_known: Array
    reward: Array  # at position 0 it is that of an earlier action and not used
    reward_known: Array
    policy_known: Array
    real: Array  # the position is in the episode of position 0


def targets(record: Record, value: Array, unroll: int, td_steps: int, discount: float, used: Array | None) -> Targets:
    """The targets of sequences `record [B, K + n + 1]` with bootstrap values `value` of the same shape.
    z_t = r_{t+1} + ... + gamma^(n-1) r_{t+n} + gamma^n v_{t+n}, cut at the end of the episode: what follows is worth 0,
    or, at a time limit, the value of its last observation. `used [B]`, if given, is how many rewards are used, at least
    one (EfficientZero's correction for old data)."""
    chex.assert_shape((record.reward, value), (None, unroll + td_steps + 1))
    over = record.is_last | record.is_terminal
    shape = len(over), unroll + 1
    part = lambda x, i: jax.lax.slice_in_dim(x, i, i + unroll + 1, axis=1)  # noqa: E731
    steps = jnp.full(len(over), td_steps) if used is None else jnp.clip(used, 1, td_steps)
    total, going = jnp.zeros(shape), ~part(over, 0)
    for i in range(1, td_steps + 1):
        ends = part(over, i) | (steps == i)[:, None]
        bootstrap = jnp.where(part(record.is_terminal, i), 0.0, part(value, i))
        gained = discount ** (i - 1) * part(record.reward, i) + discount**i * jnp.where(ends, bootstrap, 0.0)
        total += jnp.where(going, gained, 0.0)
        going &= ~ends
    before = jnp.cumsum(over, 1)[:, : unroll + 1] - over[:, : unroll + 1] > 0  # an end came earlier
    dead = jnp.cumsum(record.is_terminal, 1)[:, : unroll + 1] > 0  # a true end came, here or earlier
    real, last = ~before, part(over, 0)
    value, value_known = jnp.where(real, total, 0.0), dead | (real & ~last)
    reward, reward_known = jnp.where(real, part(record.reward, 0), 0.0), real | dead
    return Targets(value, value_known, reward, reward_known, policy_known=real & ~last, real=real)


def targets_of(nets: Networks, state: State, record: Record) -> Targets:
    """The targets of sequences `[B, L]`, which end in values of the target network, or of the stored searches. Those of
    old data use fewer real rewards, where `correction` says so."""
    config, used, values = nets.config, None, record.extras["value"]
    if config.correction:
        age = (state.step - record.extras["born"][:, 0]).astype(jnp.float32)
        used = config.td_steps - jnp.floor(age / (0.3 * config.correction))
    if config.bootstrap == "network":
        latent = nets.call(state.target, Net.represent, merge(record.obs))
        values = nets.support.mean(nets.call(state.target, Net.predict, latent)[1]).reshape(record.reward.shape)
    return targets(record, values, config.unroll, config.td_steps, config.discount, used)


# --- Losses -----------------------------------------------------------------------------------------------------------
def loss(
    nets: Networks, params: Any, record: Record, targets: Targets, weight: Array, l2: Array, key: Key,
    share: Share = ALONE,
) -> Losses:  # fmt: skip
    """Equation 1 on sequences `[B, L]`, with the mean over the unrolled steps in place of their sum.
    Returns the loss, the errors `[B]` of the values at the roots, and metrics. `weight [B]` makes up for priorities."""
    config, k = nets.config, nets.config.unroll
    chex.assert_shape(list(targets), (len(weight), k + 1))
    chex.assert_shape(record.reward, (len(weight), config.length))
    k_noise, k_far = jax.random.split(key)
    near = jax.tree.map(lambda x: x[:, : k + 1], record)
    obs = observation_noise(near.obs, k_noise, share) if config.augment else near.obs
    actions = unrolled_actions(nets.spec, near, targets.real, k_far, share)
    latents, rewards = unroll(nets, params, jax.tree.map(lambda x: x[:, 0], obs), actions)
    outputs, value = nets.call(params, Net.predict, merge(latents))
    outputs, value = jax.tree.map(lambda x: x.reshape(-1, k + 1, x.shape[-1]), (outputs, value))
    policy, support = action_distribution(nets.spec.action, outputs), nets.support
    gain = jnp.cumsum(targets.reward[:, 1:], 1) if config.prefix else targets.reward[:, 1:]
    part = jnp.concatenate([jnp.ones(1), jnp.full(k, 1 / k)])  # what is unrolled counts as much as the root
    cross = policy_cross_entropy(policy, near.extras)
    terms = {
        "reward": (support.loss(rewards, gain) * targets.reward_known[:, 1:]).mean(1),
        "value": (support.loss(value, targets.value) * targets.value_known * part).sum(1),
        "policy": (cross * targets.policy_known * part).sum(1),
        "entropy": (policy.entropy() * targets.policy_known * part).sum(1),
    }
    total = terms["reward"] + config.value_scale * terms["value"] + terms["policy"]
    total -= config.entropy * terms["entropy"]
    if config.consistency:
        terms["consistency"] = consistency_loss(nets, params, latents, obs, targets.real)
        total += config.consistency * terms["consistency"]
    if config.decoder:
        terms["decoder"] = decoder_loss(nets, params, latents, near.obs, targets.real)
        total += terms["decoder"]
    squares = l2 * optax.tree.norm(params, squared=True)
    error = jnp.abs(support.mean(value[:, 0]) - targets.value[:, 0])
    total = (weight * total).mean() + squares
    metrics = {f"loss/{name}": term.mean() for name, term in terms.items()}
    return total, (error, metrics | {"value": targets.value.mean(), "loss": total})


def unroll(nets: Networks, params: Any, obs: Any, actions: Array) -> tuple[Array, Array]:
    """Latents `[B, K + 1, ...]` from observations `[B, ...]` under encoded actions `[B, K, A]`, and reward logits.
    The gradient that enters a step is halved on its way back to the one before (appendix G)."""

    def step(carry: Any, action: Array) -> tuple[Any, Any]:
        latent, memory = carry
        latent = nets.call(params, Net.advance, latent, action)
        latent = 0.5 * latent + 0.5 * sg(latent)
        logits, _, memory = nets.call(params, Net.reward, latent, memory)
        return (latent, memory), (latent, logits)

    first = nets.call(params, Net.represent, obs)
    start = first, nets.call(params, Net.fresh, len(actions))
    _, (latents, rewards) = jax.lax.scan(step, start, actions.swapaxes(0, 1))
    return jnp.concatenate([first[None], latents]).swapaxes(0, 1), rewards.swapaxes(0, 1)


def unrolled_actions(spec: Spec, near: Record, real: Array, key: Key, share: Share) -> Array:
    """Encoded actions `[B, K, A]` of records `[B, K + 1]`; random ones where the next record is of another episode."""
    chance = share.draw(lambda n: spaces.random_action(spec.action, key, n), near.reward.size)
    taken = real[:, 1:].reshape(*real[:, 1:].shape, *(1,) * (near.action.ndim - 2))
    return spaces.encode(spec.action, jnp.where(taken, near.action[:, :-1], chance.reshape(near.action.shape)[:, :-1]))


def policy_cross_entropy(policy: Actor, extras: dict[str, Array]) -> Array:
    """Cross-entropy `[B, K + 1]` of the policy with those of the searches, over actions or sampled ones."""
    if "options" in extras:
        return -(extras["policy"] * jax.vmap(policy.log_prob, 2, 2)(extras["options"])).sum(-1)
    return -(extras["policy"] * policy.parts[0].logp).sum(-1)


def consistency_loss(nets: Networks, params: Any, latents: Array, obs: Any, real: Array) -> Array:
    """EfficientZero's consistency loss `[B]` of unrolled latents `[B, K + 1, ...]` with what was then seen."""
    chex.assert_equal_shape_prefix((latents, real), 2)
    seen, ahead = merge(jax.tree.map(lambda x: x[:, 1:], (obs, latents)))
    goals = nets.call(params, Net.projected, sg(nets.call(params, Net.represent, seen)))
    alike = similarity(nets.call(params, Net.compare, ahead), goals).reshape(-1, nets.config.unroll)
    return -(alike * real[:, 1:]).mean(1)


def decoder_loss(nets: Networks, params: Any, latents: Array, obs: Any, real: Array) -> Array:
    """What the decoder fails to show of latents `[B, K + 1, ...]`, `[B]`."""
    chex.assert_equal_shape_prefix((latents, real), 2)
    rows, seen = merge((latents, obs))
    parts = sensors.reconstruction_loss(seen, nets.call(params, Net.decode, rows), nets.spec.obs)
    return (jnp.stack(list(parts.values())).sum(0).reshape(real.shape) * real).mean(1)


def observation_noise(obs: Any, key: Key, share: Share = ALONE) -> Any:
    """EfficientZero's augmentation: images `[B, T, H, W, C]` shifted by up to four pixels, brightened by about 5 %."""

    def one(image: Array, key: Key) -> Array:
        k_shift, k_light = jax.random.split(key)
        wide = jnp.pad(image, ((4, 4), (4, 4), (0, 0)), mode="edge")
        corner = jax.random.randint(k_shift, (2,), 0, 9)
        moved = jax.lax.dynamic_slice(wide, (*corner, 0), image.shape).astype(jnp.float32)
        light = 1 + 0.05 * jnp.clip(jax.random.normal(k_light), -2, 2)
        return jnp.clip(jnp.round(moved * light), 0, 255).astype(jnp.uint8)

    def each(x: Array) -> Array:
        if x.dtype != jnp.uint8 or x.ndim != 5:
            return x
        flat = merge(x)
        keys = share.draw(lambda n: jax.random.split(key, n), len(flat))
        return jax.vmap(one)(flat, keys).reshape(x.shape)

    return jax.tree.map(each, obs)


# --- The search -------------------------------------------------------------------------------------------------------
class Place(NamedTuple):
    """Where a node of the tree is: latent, memory of the value prefix, and the sampled actions `[B, A, ...]`."""

    latent: Array
    memory: Memory | None
    options: Array | None


def prior_actions(nets: Networks, outputs: dict[str, Array], key: Key) -> tuple[Array, Array | None]:
    """Prior logits `[R, A]` and the actions they are for; sampled ones are alike, as they come from the prior."""
    if nets.discrete:
        return outputs["logits0"], None
    policy = action_distribution(nets.spec.action, outputs)
    sampled = jax.vmap(policy.sample)(jax.random.split(key, nets.options)).swapaxes(0, 1)
    return jnp.zeros(sampled.shape[:2]), sampled


def action_at(sampled: Array | None, index: Array) -> Array:
    """The action behind the index `[R]` of an option."""
    return index if sampled is None else sampled[jnp.arange(len(index)), index]


def expand(nets: Networks, params: Any, key: Key, index: Array, place: Place) -> tuple[Any, Place]:
    """The node that an option of a node leads to: one step of dynamics and prediction."""
    action = spaces.encode(nets.spec.action, action_at(place.options, index))
    latent = nets.call(params, Net.advance, place.latent, action)
    _, reward, memory = nets.call(params, Net.reward, latent, place.memory)
    outputs, value = nets.call(params, Net.predict, latent)
    logits, sampled = prior_actions(nets, outputs, key)
    discount = jnp.full(len(index), nets.config.discount)
    node = search.Node(reward=reward, discount=discount, prior_logits=logits, value=nets.support.mean(value))
    return node, Place(latent, memory, sampled)


def search_from(
    nets: Networks, params: Any, obs: Any, key: Key, temperature: Array | float
) -> tuple[search.Result, Array | None]:
    """Search from observations `[R, ...]`: what it found, and the sampled actions of the root."""
    k_draw, k_search = jax.random.split(key)
    latent = nets.call(params, Net.represent, obs)  # initial inference
    outputs, value = nets.call(params, Net.predict, latent)
    logits, sampled = prior_actions(nets, outputs, k_draw)
    legal = obs["legal"] if nets.masked else jnp.ones(logits.shape, bool)
    place = Place(latent, nets.call(params, Net.fresh, len(logits)), sampled)
    root = search.Root(logits, nets.support.mean(value), place, legal)
    tree = nets.config.tree()
    return search.search(tree, params, root, partial(expand, nets), k_search, temperature), sampled


def visit_temperature(config: Config, step: Array) -> Array:
    """The temperature at which actions are drawn from the search after `step` updates."""
    if not config.cooling:
        return jnp.ones(())
    part = step / config.cooling
    return jnp.where(part < 0.5, 1.0, jnp.where(part < 0.75, 0.5, 0.25))


# --- Wiring -----------------------------------------------------------------------------------------------------------
class State(NamedTuple):
    """All of an agent. `peak` is the greatest priority so far, which new data gets."""

    params: Any
    target: Any
    opt: Any
    hyper: dict[str, Array]
    step: Array
    peak: Array


@dataclass(frozen=True)
class Networks:
    """The network over explicit parameters, for one kind of environment."""

    spec: Spec
    config: Config

    @property
    def discrete(self) -> bool:
        """Whether the search chooses among all actions, not among sampled ones."""
        return isinstance(self.spec.action, Discrete)

    @property
    def options(self) -> int:
        """Options of a node, A."""
        return self.spec.action.n if isinstance(self.spec.action, Discrete) else self.config.sampled

    @property
    def masked(self) -> bool:
        """Whether the observation says which actions are legal."""
        return isinstance(self.spec.obs, Mapping) and "legal" in self.spec.obs

    @property
    def support(self) -> Support:
        """The bins of value and reward."""
        return Support(self.config.bound, self.config.bins)

    @property
    def net(self) -> Net:
        """The networks in the sizes of the settings."""
        c, space = self.config, self.spec.action
        return Net(
            self.spec.obs, spaces.action_size(space), spaces.head_sizes(space), self.support, c.residual, c.width,
            c.units, c.layers, c.depth, prefix=c.unroll if c.prefix else 0,
            projection=c.projection if c.consistency else 0, decoder=c.decoder,
        )  # fmt: skip

    def call(self, params: Any, method: Any, *args: Any) -> Any:
        """Apply one method of the network."""
        return apply(self.net, params["net"], *args, method=method)


def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build MuZero for an environment. ValueError where residual networks do not fit the observation.
    Replay extras: `policy [N, A]` and `value [N]` of the search, `priority [N]` of the sequence that ends there, `born`
    int32 `[N]`, the updates made when it was collected, and `options [N, A, ...]`, the sampled actions, if so."""
    check(spec.obs, config.residual)
    nets = Networks(spec, config)
    if nets.masked and not nets.discrete:
        raise ValueError(f"muzero masks single discrete actions only, and {spec.name} has {spec.action}: drop 'legal'")
    scale = optax.trace(0.9) if config.optimizer == "sgd" else optax.scale_by_adam()
    tx = optim.apart({"all": ("net",)}, optax.chain(optax.clip_by_global_norm(config.clip), scale))

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), spec.obs)
        params = {"net": nets.net.init(key, obs, spaces.encode(spec.action, spaces.blank(spec.action, 1)))}
        target = jax.tree.map(jnp.copy, params)
        return State(params, target, tx.init(params), optim.numbers(hyper), jnp.zeros((), jnp.int32), jnp.ones(()))

    def learn(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        record, weight = share.local_rows((batch.record, batch.weight))
        targets, l2 = targets_of(nets, state, record), state.hyper["l2"]
        objective = lambda params: loss(nets, params, record, targets, weight, l2, key, share)  # noqa: E731
        rate = state.hyper["lr"]
        rate *= 0.1 ** (state.step // config.lr_decay_updates) if config.lr_decay_updates else 1.0
        new, error, metrics = gradient_step(state, objective, tx, {"net": rate}, share=share)
        target = every(config.target_every, new.step, new.params, state.target)
        priority = error + 1e-6
        peak = jnp.maximum(state.peak, share.max(priority.max()))
        metrics["priority"] = share.mean(priority.mean())
        feedback = share.batch_rows({"priority": priority[:, None]})
        return new._replace(target=target, peak=peak), feedback, metrics

    def reanalyse(state: State, batch: Batch, key: Key) -> Updated:
        """Search old positions again with the target network; their policies and values in the replay are replaced."""
        rows = jax.tree.map(lambda x: x[:, 0], batch.record)
        found, sampled = search_from(nets, state.target, rows.obs, key, 0.0 if config.search == "gumbel" else 1.0)
        feedback = {"policy": found.policy[:, None], "value": found.value[:, None]}
        if sampled is not None:
            return state, feedback | {"options": sampled[:, None]}, {"reanalysed": jnp.zeros(())}
        change = jnp.abs(found.policy - rows.extras["policy"]).sum(-1).mean() / 2
        return state, feedback, {"reanalysed": change}

    draw = partial(replay.prioritised, length=config.length, alpha=config.alpha, beta=config.beta)
    sampler = lambda state, ring, key, size: draw(ring, key, size)  # noqa: E731
    steps = {"learn": TrainStep(learn, config.batch_size, config.length, sampler, shared=True)}
    if config.reanalyse:
        steps["reanalyse"] = TrainStep(reanalyse, config.reanalyse, 1)
    reset = lambda state, num_envs: ()  # noqa: E731
    return Agent(init, reset, partial(act, nets), steps, partial(imagine, nets), schedule(config), hyper_of(config))


def act(nets: Networks, state: State, carry: tuple[()], step: Step, key: Key, mode: str) -> Acted:
    """Search and act; see `Agent.act`."""
    space, num, sampled = nets.spec.action, len(step.reward), None
    if (action := forced(space, step, key, mode)) is not None:
        policy, value = jnp.full((num, nets.options), 1 / nets.options), jnp.zeros(num)
        if not nets.discrete:
            keys = jax.random.split(jax.random.fold_in(key, 1), nets.options)
            sampled = jax.vmap(lambda k: spaces.random_action(space, k, num))(keys).swapaxes(0, 1)
    else:
        temperature = 0.0 if mode == "greedy" else visit_temperature(nets.config, state.step)
        found, sampled = search_from(nets, state.params, step.obs, key, temperature)
        action, policy, value = action_at(sampled, found.action), found.policy, found.value
    extras = {"policy": policy, "value": value}
    extras |= {"priority": jnp.full(num, state.peak), "born": jnp.full(num, state.step)}
    return carry, action, extras | ({} if sampled is None else {"options": sampled})


def imagine(nets: Networks, state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
    """As in `Agent.imagine`. It predicts no ends: `cont` is 1. Without a decoder there are no observations."""
    spec, params = nets.spec, state.params
    spaces.check_dream(spec.action, context, actions, horizon)
    latent = nets.call(params, Net.represent, jax.tree.map(lambda x: x[:, -1], context.obs))

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        latent, memory = carry
        given, key = x
        policy = action_distribution(spec.action, nets.call(params, Net.predict, latent)[0])
        action = policy.sample(key) if actions is None else given
        latent = nets.call(params, Net.advance, latent, spaces.encode(spec.action, action))
        _, reward, memory = nets.call(params, Net.reward, latent, memory)
        shown = nets.call(params, Net.decode, latent) if nets.config.decoder else None
        return (latent, memory), (latent, action, reward, shown)

    given = None if actions is None else actions.swapaxes(0, 1)
    start = latent, nets.call(params, Net.fresh, len(latent))
    _, (latents, taken, rewards, shown) = jax.lax.scan(step, start, (given, jax.random.split(key, horizon)))
    obs = sensors.observation(shown, spec.obs) if nets.config.decoder else None
    return Dream(obs, rewards, jnp.ones_like(rewards), taken, latents).swapped()


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random play, then acting and learning in turn, so that each step is learned from `train_ratio` times."""
    per_update = config.batch_size / config.train_ratio  # environment steps
    steps, updates = pace(per_update, config.envs)
    again = (Train("reanalyse", updates),) if config.reanalyse else ()
    body = (Collect(steps), *again, Train("learn", updates))
    return prefill(config.prefill, config.envs, config.length), Repeat(FOREVER, body)


# --- Presets ----------------------------------------------------------------------------------------------------------
_MLP = Config(
    search="gumbel", simulations=16, residual=False, width=64, units=64, layers=1, bins=101, bound=25.0, envs=8,
    batch_size=64, train_ratio=24.0, reanalyse=32, prefill=400, capacity=100_000, optimizer="adam", lr=1e-3,
    lr_decay_updates=0, l2=1e-5, projection=64, cooling=0, target_every=100, alpha=0.0, beta=0.4,
)  # fmt: skip
PRESETS = {
    "published": Config(),
    "cartpole": _MLP,
    "catch": replace(_MLP, bins=51, bound=5.0, train_ratio=32.0, alpha=0.6),
    "minatar": replace(_MLP, width=128, units=128, alpha=0.6),
    "pendulum": replace(_MLP, discount=0.97, sampled=16, simulations=24, entropy=5e-3),
}
"""The paper's, and small ones for two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="catch", year=2019, steps=8000, obeys=("legal", "to_play", "sim"),
    copies={"target": None}, renamed={"decay": "lr_decay_updates"},
    summary="tree search in a learned model of rewards, values and policies (Schrittwieser et al. 2020)",
    paper="Schrittwieser et al., Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model",
    sees="residual CNN or MLP; a latent scaled to [0, 1]",
    predicts="residual CNN or MLP: next latent, reward, value, policy; no observations (decoder on request)",
    acts="tree search (PUCT or Gumbel) in the latent; over sampled actions where they are vectors",
)  # fmt: skip
