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
sequence, which is when the sequence becomes complete. RMS norm stands for batch norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxwm import replay, spaces
from jaxwm.control import search
from jaxwm.control.policy import action_distribution, logged
from jaxwm.distributions import sg
from jaxwm.errors import check_choice, check_range, check_types
from jaxwm.learning import optim
from jaxwm.learning.pieces import join
from jaxwm.models.value_equivalent import Memory, Net, Support, check, similarity
from jaxwm.nets import sensors
from jaxwm.nets.layers import apply
from jaxwm.schedule import pace
from jaxwm.types import (
    FOREVER,
    Agent,
    Array,
    Batch,
    Collect,
    Discrete,
    Dream,
    Key,
    Mode,
    Record,
    Repeat,
    Spec,
    Step,
    Train,
    TrainStep,
)


@dataclass(frozen=True)
class Config:
    """Settings of MuZero; defaults are those published for Atari, with reanalysis."""

    # Search.
    search: Literal["puct", "gumbel"] = "puct"
    """Kind of tree search."""
    simulations: int = 50
    """Simulations of each search."""
    considered: int = 16
    """Actions that a Gumbel root draws."""
    sampled: int = 20
    """Actions drawn at each node where they are not a small set (vectors)."""
    dirichlet: float = 0.25
    """Concentration of the noise at a PUCT root."""
    noise: float = 0.25
    """Share of that noise in the prior."""
    cooling: int = 1_000_000
    """Updates of a run over which actions become greedier: temperature 1, from half of them 0.5, from three quarters
    0.25; 0 keeps it at 1."""

    # Sizes.
    residual: bool = True
    """Residual networks on planes, or else MLPs (and convolutions for images)."""
    width: int = 256
    """Channels of the latent planes, or its numbers."""
    units: int = 256
    """Units of hidden layers."""
    layers: int = 16
    """Residual blocks of the representation and of the dynamics, or layers of the MLPs."""
    depth: int = 16
    """Channels of the first convolution for images without residual networks, and of the decoder."""
    bins: int = 601
    """Bins of value and reward."""
    bound: float = 300.0
    """Greatest squashed value or reward."""

    # Data.
    envs: int = 32
    """Parallel environments of each member."""
    batch_size: int = 1024
    """Sequences of an update."""
    unroll: int = 5
    """Steps the model is unrolled, K."""
    td_steps: int = 5
    """Rewards before the bootstrap value, n: 5 with reanalysis, 10 without."""
    bootstrap: Literal["network", "search"] = "network"
    """Bootstrap values: the target network's, or those of the stored searches."""
    train_ratio: float = 2.0
    """Sequences learned from for each step played."""
    reanalyse: int = 1024
    """Positions that are searched anew before each update; 0: none."""
    prefill: int = 2000
    """Environment steps of random play before learning starts."""
    capacity: int = 1_000_000
    """Replay size of a member in environment steps (never more than the run collects)."""
    alpha: float = 1.0
    """Power of the priorities, which are errors of values; 0 samples uniformly."""
    beta: float = 1.0
    """Power of the weights that make up for priorities."""

    # Losses.
    discount: float = 0.997
    value_scale: float = 0.25
    """Weight of the value's loss."""
    entropy: float = 0.0
    """Weight of the policy's entropy."""
    consistency: float = 0.0
    """EfficientZero: weight of the agreement of unrolled latents with those of what is then seen; 0: off."""
    projection: int = 1024
    """Width of the projection in which they are compared."""
    prefix: bool = False
    """EfficientZero: predict sums of rewards (value prefixes) with an LSTM."""
    correction: int = 0
    """EfficientZero: updates of a run; targets of old data use fewer real rewards, by its age. 0: off."""
    augment: bool = False
    """Shift images by up to four pixels and change their brightness, in learning."""
    decoder: bool = False
    """Learn to show what is imagined; nothing else learns from it."""

    # Optimiser.
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD has momentum 0.9."""
    lr: float = 0.05
    """Learning rate."""
    decay: int = 350_000
    """Updates after which it falls to a tenth; 0: never."""
    l2: float = 1e-4
    """Weight of the squared norm of the parameters."""
    clip: float = 5.0
    """Largest norm of the gradient."""
    target_every: int = 200
    """Updates between two copies to the target network."""

    def __post_init__(self):
        check_types(self)
        check_range(
            self, "sampled width units batch_size unroll td_steps envs target_every capacity projection", least=1
        )
        check_range(self, "layers cooling reanalyse prefill decay correction", least=0)
        check_range(self, "bins", least=3)
        check_range(self, "depth", least=1)
        check_range(self, "train_ratio lr clip bound", above=0)
        check_range(self, "alpha beta l2 entropy consistency value_scale", least=0)
        check_range(self, "discount", least=0, most=1)
        check_range(self, "capacity", least=self.length * self.envs)
        search.check(self.tree())

    @property
    def length(self) -> int:
        """Records of a sequence, L."""
        return self.unroll + self.td_steps + 1

    def tree(self) -> search.Settings:
        """The settings of the search. Values have no known bounds."""
        return search.Settings(
            self.search, self.simulations, self.considered, dirichlet=self.dirichlet, noise=self.noise
        )


_MLP = Config(
    search="gumbel", simulations=16, residual=False, width=64, units=64, layers=1, bins=101, bound=25.0, envs=8,
    batch_size=64, train_ratio=24.0, reanalyse=32, prefill=400, capacity=100_000, optimizer="adam", lr=1e-3, decay=0,
    l2=1e-5, projection=64, cooling=0, target_every=100, alpha=0.0, beta=0.4,
)  # fmt: skip
PRESETS = {
    "published": Config(),
    "cartpole": _MLP,
    "catch": replace(_MLP, bins=51, bound=5.0, train_ratio=32.0, alpha=0.6),
    "minatar": replace(_MLP, width=128, units=128, alpha=0.6),
    "pendulum": replace(_MLP, discount=0.97, sampled=16, simulations=24, entropy=5e-3),
}
"""The paper's, and small ones for two CPU cores."""


class State(NamedTuple):
    """All of an agent. `peak` is the greatest priority so far, which new data gets."""

    params: Any
    target: Any
    opt: Any
    hyper: dict[str, Array]
    step: Array
    peak: Array


class Place(NamedTuple):
    """Where a node of the tree is: latent, memory of the value prefix, and the sampled actions `[B, A, ...]`."""

    latent: Array
    memory: Memory | None
    options: Array | None


class Targets(NamedTuple):
    """What positions 0 to K of sequences should say, `[B, K + 1]`, each with where it counts."""

    value: Array
    value_known: Array
    reward: Array  # at position 0 it is that of an earlier action and not used
    reward_known: Array
    policy_known: Array
    real: Array  # the position is in the episode of position 0


def make(spec: Spec, config: Config = Config()) -> Agent:
    """MuZero for an environment. ValueError where residual networks do not fit the observation.

    Replay extras: `policy [N, A]` and `value [N]` of the search, `priority [N]` of the sequence that ends there, `born`
    int32 `[N]`, the updates made when it was collected, and `options [N, A, ...]`, the sampled actions, if so.
    """
    check(spec.obs, config.residual)
    whole = isinstance(spec.action, Discrete)
    options = spec.action.n if isinstance(spec.action, Discrete) else config.sampled
    masked = isinstance(spec.obs, Mapping) and "legal" in spec.obs
    if masked and not whole:
        raise ValueError(f"muzero masks single discrete actions only, and {spec.name} has {spec.action}: drop 'legal'")
    support, tree = Support(config.bound, config.bins), config.tree()
    net = Net(
        spec.obs, spaces.action_size(spec.action), spaces.head_sizes(spec.action), support, config.residual,
        config.width, config.units, config.layers, config.depth, prefix=config.unroll if config.prefix else 0,
        projection=config.projection if config.consistency else 0, decoder=config.decoder,
    )  # fmt: skip
    scale = optax.trace(0.9) if config.optimizer == "sgd" else optax.scale_by_adam()
    tx = optim.apart({"all": ("net",)}, optax.chain(optax.clip_by_global_norm(config.clip), scale))

    def call(params: Any, method: Any, *args: Any) -> Any:
        return apply(net, params["net"], *args, method=method)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), spec.obs)
        params = {"net": net.init(key, obs, spaces.encode(spec.action, spaces.blank(spec.action, 1)))}
        target = jax.tree.map(jnp.copy, params)
        return State(params, target, tx.init(params), optim.numbers(hyper), jnp.zeros((), jnp.int32), jnp.ones(()))

    # --- Searching ------------------------------------------------------------------------------------------------

    def choices(outputs: dict[str, Array], key: Key) -> tuple[Array, Array | None]:
        """Prior logits `[R, A]` and the actions they are for; sampled ones are alike, as they come from the prior."""
        policy = action_distribution(spec.action, outputs)
        if whole:
            return outputs["logits0"], None
        drawn = jax.vmap(policy.sample)(jax.random.split(key, options)).swapaxes(0, 1)
        return jnp.zeros(drawn.shape[:2]), drawn

    def pick(drawn: Array | None, index: Array) -> Array:
        """The action behind the index `[R]` of an option."""
        return index if drawn is None else drawn[jnp.arange(len(index)), index]

    def model(params: Any, key: Key, index: Array, place: Place) -> tuple[Any, Place]:
        latent = call(params, Net.advance, place.latent, spaces.encode(spec.action, pick(place.options, index)))
        _, reward, memory = call(params, Net.reward, latent, place.memory)
        outputs, value = call(params, Net.predict, latent)
        logits, drawn = choices(outputs, key)
        discount = jnp.full(len(index), config.discount)
        node = search.Node(reward=reward, discount=discount, prior_logits=logits, value=support.mean(value))
        return node, Place(latent, memory, drawn)

    def look(params: Any, obs: Any, key: Key, heat: Array | float) -> tuple[search.Result, Array | None]:
        """Search from observations `[R, ...]`: what it found, and the sampled actions of the root."""
        k_draw, k_search = jax.random.split(key)
        latent = call(params, Net.represent, obs)
        outputs, value = call(params, Net.predict, latent)
        logits, drawn = choices(outputs, k_draw)
        root = search.Root(
            logits, support.mean(value), Place(latent, call(params, Net.fresh, len(logits)), drawn), legal(obs, logits)
        )
        return search.search(tree, params, root, model, k_search, heat), drawn

    def legal(obs: Any, logits: Array) -> Array:
        return obs["legal"] if masked else jnp.ones(logits.shape, bool)

    # --- Acting ---------------------------------------------------------------------------------------------------

    def reset(state: State, num_envs: int) -> tuple[()]:
        return ()

    def act(state: State, carry: tuple[()], step: Step, key: Key, mode: str) -> tuple[tuple[()], Array, dict]:
        check_choice("mode", mode, get_args(Mode))
        num = len(step.reward)
        if mode in ("random", "logged"):
            known = step.obs["legal"] if masked else None
            action = spaces.random_action(spec.action, key, num, known) if mode == "random" else logged(step)
            found: Any = search.Result(action, jnp.full((num, options), 1 / options), jnp.zeros(num), action)
            drawn = None
            if not whole:
                keys = jax.random.split(jax.random.fold_in(key, 1), options)
                drawn = jax.vmap(lambda k: spaces.random_action(spec.action, k, num))(keys).swapaxes(0, 1)
        else:
            found, drawn = look(state.params, step.obs, key, 0.0 if mode == "greedy" else temperature(state))
            action = pick(drawn, found.action)
        extras = {"policy": found.policy, "value": found.value}
        extras |= {"priority": jnp.full(num, state.peak), "born": jnp.full(num, state.step)}
        return carry, action, extras | ({} if whole else {"options": drawn})

    def temperature(state: State) -> Array:
        if not config.cooling:
            return jnp.ones(())
        part = state.step / config.cooling
        return jnp.where(part < 0.5, 1.0, jnp.where(part < 0.75, 0.5, 0.25))

    # --- Learning -------------------------------------------------------------------------------------------------

    def sampler(state: State, ring: replay.Ring, key: Key) -> Batch:
        return replay.prioritised(ring, key, config.batch_size, config.length, config.alpha, config.beta)

    def values(state: State, record: Record) -> Array:
        """Bootstrap values `[B, L]`."""
        if config.bootstrap == "search":
            return record.extras["value"]
        rows = join(record.obs)
        _, logits = call(state.target, Net.predict, call(state.target, Net.represent, rows))
        return support.mean(logits).reshape(record.reward.shape)

    def disagreement(params: Any, latents: Array, obs: Any, real: Array) -> Array:
        """EfficientZero's consistency loss `[B]` of unrolled latents `[B, K + 1, ...]` with what was then seen."""
        seen, ahead = join(jax.tree.map(lambda x: x[:, 1:], (obs, latents)))
        goals = call(params, Net.projected, sg(call(params, Net.represent, seen)))
        alike = similarity(call(params, Net.compare, ahead), goals).reshape(-1, config.unroll)
        return -(alike * real[:, 1:]).mean(1)

    def misses(params: Any, latents: Array, obs: Any, real: Array) -> Array:
        """What the decoder fails to show, `[B]`."""
        rows, seen = join((latents, obs))
        parts = sensors.reconstruction_loss(seen, call(params, Net.decode, rows), spec.obs)
        return (jnp.stack(list(parts.values())).sum(0).reshape(real.shape) * real).mean(1)

    def loss(params: Any, record: Record, targets: Targets, weight: Array, l2: Array, key: Key) -> tuple[Array, Any]:
        """Equation 1, with the mean over the unrolled steps in place of their sum."""
        k = config.unroll
        k_noise, k_far = jax.random.split(key)
        near = jax.tree.map(lambda x: x[:, : k + 1], record)
        obs = observation_noise(near.obs, k_noise) if config.augment else near.obs
        odd = spaces.random_action(spec.action, k_far, near.reward.size).reshape(near.action.shape)
        follows = targets.real[:, 1:].reshape(*targets.real[:, 1:].shape, *(1,) * (near.action.ndim - 2))
        actions = spaces.encode(spec.action, jnp.where(follows, near.action[:, :-1], odd[:, :-1]))

        def unrolled(carry: Any, action: Array) -> tuple[Any, Any]:
            latent, memory = carry
            latent = call(params, Net.advance, latent, action)
            latent = 0.5 * latent + 0.5 * sg(latent)
            logits, _, memory = call(params, Net.reward, latent, memory)
            return (latent, memory), (latent, logits)

        first = call(params, Net.represent, jax.tree.map(lambda x: x[:, 0], obs))
        start = first, call(params, Net.fresh, len(weight))
        _, (latents, rewards) = jax.lax.scan(unrolled, start, actions.swapaxes(0, 1))
        latents = jnp.concatenate([first[None], latents]).swapaxes(0, 1)  # [B, K + 1, ...]
        rows = join(latents)
        outputs, value = jax.tree.map(lambda x: x.reshape(-1, k + 1, x.shape[-1]), call(params, Net.predict, rows))

        policy = action_distribution(spec.action, outputs)
        goal = near.extras["policy"]
        if whole:
            cross = -(goal * policy.parts[0].logp).sum(-1)  # type: ignore[union-attr]
        else:
            likely = jax.vmap(policy.log_prob, 2, 2)(near.extras["options"])
            cross = -(goal * likely).sum(-1)
        gain = targets.reward[:, 1:]
        gain = jnp.cumsum(gain, 1) if config.prefix else gain
        share = jnp.concatenate([jnp.ones(1), jnp.full(k, 1 / k)])  # what is unrolled counts as much as the root
        terms = {
            "reward": (support.loss(rewards.swapaxes(0, 1), gain) * targets.reward_known[:, 1:]).mean(1),
            "value": (support.loss(value, targets.value) * targets.value_known * share).sum(1),
            "policy": (cross * targets.policy_known * share).sum(1),
            "entropy": (policy.entropy() * targets.policy_known * share).sum(1),
        }
        total = terms["reward"] + config.value_scale * terms["value"] + terms["policy"]
        total -= config.entropy * terms["entropy"]
        if config.consistency:
            terms["consistency"] = disagreement(params, latents, obs, targets.real)
            total += config.consistency * terms["consistency"]
        if config.decoder:
            terms["decoder"] = misses(params, latents, near.obs, targets.real)
            total += terms["decoder"]
        squares = l2 * optax.tree.norm(params, squared=True)
        error = jnp.abs(support.mean(value[:, 0]) - targets.value[:, 0])
        metrics = {f"loss/{name}": term.mean() for name, term in terms.items()}
        return (weight * total).mean() + squares, (metrics | {"value": targets.value.mean()}, error)

    def learn(state: State, batch: Batch, key: Key) -> tuple[State, dict, dict[str, Array]]:
        record = batch.record
        age = (state.step - record.extras["born"][:, 0]).astype(jnp.float32)
        used = config.td_steps - jnp.floor(age / (0.3 * config.correction)) if config.correction else None
        targets = aims(record, values(state, record), config.unroll, config.td_steps, config.discount, used)
        (total, (metrics, error)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, record, targets, batch.weight, state.hyper["l2"], key
        )
        direction, opt = tx.update(grads, state.opt, state.params)
        rate = state.hyper["lr"] * (0.1 ** (state.step // config.decay) if config.decay else 1.0)
        params = optim.descend(state.params, direction, {"all": ("net",)}, {"all": rate})
        count = state.step + 1
        fresh = count % config.target_every == 0
        target = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), params, state.target)
        priority = error + 1e-6
        metrics |= {"loss": total, "grad_norm": optim.norm(grads), "priority": priority.mean()}
        peak = jnp.maximum(state.peak, priority.max())
        return State(params, target, opt, state.hyper, count, peak), {"priority": priority[:, None]}, metrics

    def reanalyse(state: State, batch: Batch, key: Key) -> tuple[State, dict, dict[str, Array]]:
        """Search positions anew with the target network; their policies and values in the replay are replaced."""
        rows = jax.tree.map(lambda x: x[:, 0], batch.record)
        found, drawn = look(state.target, rows.obs, key, 0.0 if config.search == "gumbel" else 1.0)
        feedback = {"policy": found.policy[:, None], "value": found.value[:, None]}
        if drawn is not None:
            feedback["options"] = drawn[:, None]
        change = jnp.abs(found.policy - rows.extras["policy"]).sum(-1).mean() / 2 if whole else jnp.zeros(())
        return state, feedback, {"reanalysed": change}

    # --- Imagining ------------------------------------------------------------------------------------------------

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        """As in `Agent.imagine`. It predicts no ends: `cont` is 1. Without a decoder there are no observations."""
        latent = call(state.params, Net.represent, jax.tree.map(lambda x: x[:, -1], context.obs))

        def step(carry: Any, x: Any) -> tuple[Any, Any]:
            latent, memory = carry
            given, key = x
            policy = action_distribution(spec.action, call(state.params, Net.predict, latent)[0])
            action = policy.sample(key) if actions is None else given
            latent = call(state.params, Net.advance, latent, spaces.encode(spec.action, action))
            _, reward, memory = call(state.params, Net.reward, latent, memory)
            shown = call(state.params, Net.decode, latent) if config.decoder else None
            return (latent, memory), (latent, action, reward, shown)

        given = None if actions is None else actions.swapaxes(0, 1)
        start = latent, call(state.params, Net.fresh, len(latent))
        _, out = jax.lax.scan(step, start, (given, jax.random.split(key, horizon)))
        latents, taken, rewards, shown = jax.tree.map(lambda x: x.swapaxes(0, 1), out)
        obs = sensors.observation(shown, spec.obs) if config.decoder else None
        return Dream(obs, rewards, jnp.ones_like(rewards), taken, latents)

    steps = {"learn": TrainStep(learn, config.batch_size, config.length, sampler)}
    if config.reanalyse:
        steps["reanalyse"] = TrainStep(reanalyse, config.reanalyse, 1)
    return Agent(init, reset, act, steps, imagine, schedule(config), {"lr": config.lr, "l2": config.l2})


def aims(record: Record, value: Array, unroll: int, td_steps: int, discount: float, used: Array | None) -> Targets:
    """Targets of sequences `record [B, K + n + 1]` with bootstrap values `value` of the same shape.

    z_t = r_{t+1} + ... + gamma^(n-1) r_{t+n} + gamma^n v_{t+n}, cut at the end of the episode: what follows is worth 0,
    or, at a time limit, the value of its last observation. `used [B]`, if given, is how many rewards are used, at least
    one (EfficientZero's correction for old data).
    """
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
    return Targets(
        value=jnp.where(real, total, 0.0),
        value_known=dead | (real & ~last),
        reward=jnp.where(real, part(record.reward, 0), 0.0),
        reward_known=real | dead,
        policy_known=real & ~last,
        real=real,
    )


def observation_noise(obs: Any, key: Key) -> Any:
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
        flat = join(x)
        return jax.vmap(one)(flat, jax.random.split(key, len(flat))).reshape(x.shape)

    return jax.tree.map(each, obs)


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random play, then acting and learning in turn, so that each step is learned from `train_ratio` times."""
    per_update = config.batch_size / config.train_ratio  # environment steps
    steps, updates = pace(per_update, config.envs)
    again = (Train("reanalyse", updates),) if config.reanalyse else ()
    body = (Collect(steps), *again, Train("learn", updates))
    return Collect(max(config.prefill, config.envs * config.length), "random"), Repeat(FOREVER, body)
