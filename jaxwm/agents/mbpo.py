"""MBPO (Janner et al. 2019): soft actor-critic on short rollouts of an ensemble, branched from real states.

Sees float vectors; predicts the change of the observation and the reward with a bootstrapped ensemble of Gaussian
networks (as PETS), of which those with the least error on held-out records are elites; acts with the policy of soft
actor-critic. Every `refresh` steps the ensemble goes on learning until it is no longer better, then many rollouts of k
steps start from real states, each step through an elite of its own; in between every real step is followed by updates
of the policy from imagined and a few real steps. k grows with time where the schedule says so.

B batch, R all pairs of records in the replay, E networks, D numbers of the observation, A actions, N' rollouts.

Where paper and official code differ, this follows the code: networks and optimiser go on from one retraining to the
next, rewards are noisy as observations are, held-out error is plain squared error, all losses of soft actor-critic see
one batch. Five things differ from the code: held-out records are decided once for each record instead of anew, so they
never leak; a network's bootstrap is made of Poisson counts that stay as they are; an epoch draws its rows with
replacement; rollouts that ended stay in the imagined replay with weight 0; weights of the policy start as truncated
normals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwm import replay, spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.control import sac
from jaxwm.envs.known import KNOWN
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Updated, gradient_step
from jaxwm.models import ensemble
from jaxwm.nets.sensors import check_vectors, joined, parted, width
from jaxwm.replay import Ring
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, prefill
from jaxwm.types import Agent, Array, Batch, Dream, Key, Metrics, PyTree, Record, Spec, TrainStep, Varies, Writes


@dataclass(frozen=True)
class Config:
    """Settings of MBPO; defaults are those of the official code for Hopper."""

    networks: Count = 7  # Networks of the ensemble, E.
    elites: int = 5  # Networks with the least held-out error, which make the rollouts.
    model_layers: Count = 4  # Hidden layers of a network.
    model_units: Count = 200  # Width of its hidden layers.
    weight_decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    """Weight of half the squared weights of each layer in the loss, the output layer included."""
    model_lr: Varies[Positive] = 1e-3  # Learning rate of the ensemble.
    model_batch: Count = 256  # Transitions that each network sees in an update of the ensemble.
    epochs: Natural = 200  # Most passes over the data in a retraining; 0 leaves the model untrained.
    patience: Natural = 5  # Epochs in which no network is better, after which a retraining ends.
    least_gain: Fraction = 0.01  # Share by which a network's held-out error must fall to count as better.
    holdout: Fraction = 0.2  # Share of the records that are held out.
    holdout_most: Count = 5000  # Held-out records that are judged, the newest ones.
    bound_scale: Amount = 0.01  # Weight of the distance between the log-variance bounds in the loss.
    ends: Literal["known", "learned"] = "known"
    """Whether the end of an episode is the environment's own function (`envs.known`) or one more output."""
    refresh: Count = 250  # Environment steps between two retrainings, each with new rollouts.
    epoch_steps: Count = 1000  # Environment steps of an epoch of the rollout schedule.
    rollouts: Count = 100_000  # Rollouts after each retraining, N'.
    rollout_schedule: tuple[int, ...] = (20, 150, 1, 15)
    """Rollouts are as long as the third number before the epoch that is the first, then grow to the fourth, which they
    have from the epoch on that is the second."""
    retain: Count = 1  # Epochs whose rollouts are kept.
    real_ratio: Fraction = 0.05  # Share of real steps in a batch of the policy.
    layers: Count = 2  # Hidden layers of policy and critics.
    units: Count = 256  # Width of the hidden layers.
    lr: Varies[Positive] = 3e-4  # Learning rate of policy, critics and temperature.
    discount: Varies[Fraction] = 0.99  # Discount, gamma.
    tau: Varies[Fraction] = 0.005  # Share of the critics that goes into the target critics with each update.
    entropy_target: float | None = -1.0
    """Entropy that the temperature aims at, in nats; None: minus the size of the action."""
    batch_size: Count = 256  # Transitions of an update of the policy, real and imagined.
    updates_per_step: Count = 20  # Updates of the policy after each environment step.
    envs: Count = 1  # Environments.
    prefill: Count = 5000  # Environment steps of random play before learning starts.
    capacity: int = 125_000  # Replay size in environment steps.

    def __post_init__(self):
        for name in ("weight_decay", "rollout_schedule"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list where it comes out of a file
        check_types(self)
        check_number("elites", self.elites, least=1, most=self.networks, whole=True)
        check_number("capacity", self.capacity, least=2 * self.envs, whole=True)
        if self.entropy_target is not None:
            check_number("entropy_target", self.entropy_target)
        _check_tuples(self)


def _check_tuples(config: Config) -> None:
    """ValueError where the settings with several numbers do not fit."""
    if len(config.weight_decay) != config.model_layers + 1:
        raise ValueError(
            f"weight_decay must be {config.model_layers + 1} numbers, one per layer and one for the output, not "
            f"{config.weight_decay}"
        )
    for rate in config.weight_decay:
        check_number("weight_decay", rate, least=0)
    if len(config.rollout_schedule) != 4:
        raise ValueError(
            "rollout_schedule must be four numbers (first epoch, last epoch, first length, last length), not "
            f"{config.rollout_schedule}"
        )
    first, last, short, long = config.rollout_schedule
    check_number("the first epoch of rollout_schedule", first, least=0, whole=True)
    check_number("the last epoch of rollout_schedule", last, least=first, whole=True)
    check_number("the first length of rollout_schedule", short, least=1, whole=True)
    check_number("the last length of rollout_schedule", long, least=short, whole=True)


class Memory(NamedTuple):
    """What a learner keeps of its retrainings: what decides the bootstraps, the best weights so far with their held-out
    errors `[E]`, epochs of this retraining and those since any network was better, and the elites."""

    bootstraps: Array
    best: PyTree
    errors: Array
    epoch: Array
    stale: Array
    elites: Array


class State(NamedTuple):
    """A learner's state; `slow` are the target critics."""

    params: Any
    opt: Any
    hyper: dict[str, Array]
    step: Array
    slow: Any
    memory: Memory


# --- The model (section 4.2, appendix C) --------------------------------------------------------------------------
ADAM = optax.scale_by_adam()


def scale(spec: Spec, state: State, batch: Batch, key: Key) -> Updated:
    """Begin a retraining: fit mean and standard deviation of all inputs so far, forget what was best."""
    data = ensemble.transitions(spec, batch.record, reward=True)
    inputs = ensemble.fit(data.inputs, data.weight * batch.weight)
    memory, zero = state.memory, jnp.zeros((), jnp.int32)
    memory = memory._replace(errors=jnp.full_like(memory.errors, jnp.inf), epoch=zero, stale=zero)
    metrics = {"transitions": (data.weight * batch.weight).sum()}
    return state._replace(params=state.params | {"inputs": inputs}, memory=memory), {}, metrics


def learn(spec: Spec, config: Config, state: State, batch: Batch, key: Key) -> Updated:
    """Pass once over all pairs of records `[R, 2]` that are not held out, and judge the networks on those that are."""
    data, index = ensemble.transitions(spec, batch.record, reward=True), batch.index
    data = data._replace(inputs=state.params["inputs"].forward(data.inputs))
    held, there = ensemble.held_out(index.row, index.env, config.holdout), batch.weight > 0
    rows, count = listed(there & ~held)

    def minibatch(i: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
        state, total = carry
        shape = config.networks, config.model_batch
        drawn = rows[jax.random.randint(jax.random.fold_in(key, i), shape, 0, jnp.maximum(count, 1))]
        some = jax.tree.map(lambda x: x[drawn], data)
        network = jnp.broadcast_to(jnp.arange(shape[0])[:, None], shape)
        weight = ensemble.bootstrap(state.memory.bootstraps, index.row[drawn], index.env[drawn], network)
        weight = some.weight * (weight if config.networks > 1 else 1.0)  # a single network has no others
        objective = lambda model: ensemble.loss(  # noqa: E731
            model, some._replace(weight=weight), config.weight_decay, config.bound_scale
        )
        state, _, metrics = gradient_step(state, objective, ADAM, state.hyper["model_lr"], part="model")
        return state, total + metrics["loss"]

    trips = -(-count // config.model_batch)
    state, total = jax.lax.fori_loop(0, trips, minibatch, (state, jnp.zeros(())))
    judged, tests = listed(there & held, config.holdout_most)
    errors = validate(state.params["model"], data, judged, tests)
    state, finished = keep_best(config, state, errors)
    metrics = {"loss": total / jnp.maximum(trips, 1), "held_out_error": errors.mean(), "finished": finished}
    return state, {}, metrics


def listed(mask: Array, most: int | None = None) -> tuple[Array, Array]:
    """The places of the True entries of `mask [R]`, or of the last `most` of them, newest first; and how many."""
    size = min(len(mask), most or len(mask))
    places = len(mask) - 1 - jnp.nonzero(mask[::-1], size=size, fill_value=0)[0]
    return places, jnp.minimum(mask.sum(), size)


def validate(model: PyTree, data: ensemble.Transitions, rows: Array, count: Array, piece: int = 256) -> Array:
    """The mean squared error `[E]` on the first `count` of `rows` of `data [R, ...]`, `piece` of them at a time."""
    networks = len(model["kernel0"])
    padded = jnp.pad(rows, (0, -len(rows) % piece))

    def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        place = i * piece + jnp.arange(piece)
        some = jax.tree.map(lambda x: x[padded[place]], data)
        inputs = jnp.broadcast_to(some.inputs, (networks, *some.inputs.shape))
        error = jnp.square(ensemble.predict(model, inputs).mean - some.target).mean(-1)  # [E, piece]
        weight = some.weight * (place < count)
        return carry[0] + (error * weight).sum(-1), carry[1] + weight.sum()

    total, weight = jax.lax.fori_loop(0, -(-count // piece), add, (jnp.zeros(networks), jnp.zeros(())))
    return total / jnp.maximum(weight, 1.0)


def keep_best(config: Config, state: State, errors: Array) -> tuple[State, Array]:
    """Remember each network where it is better than before; at the end of a retraining go back to the best and choose
    the elites. The state, and whether this is the end, as a float. Bounds of log-variances are not taken back."""
    memory, model = state.memory, state.params["model"]
    better = errors < memory.errors * (1.0 - config.least_gain)
    networks = [name for name in model if name.startswith(("kernel", "bias"))]
    pick = lambda flag, a, b: {n: jnp.where(flag.reshape(-1, 1, 1), a[n], b[n]) for n in networks}  # noqa: E731
    best, errors = pick(better, model, memory.best), jnp.where(better, errors, memory.errors)
    epoch, stale = memory.epoch + 1, jnp.where(better.any(), 0, memory.stale + 1)
    finished = (stale > config.patience) | (epoch >= config.epochs)
    elites = jnp.where(finished, jnp.argsort(errors)[: config.elites], memory.elites)
    model = model | pick(finished, best, model)
    memory = memory._replace(best=best, errors=errors, epoch=epoch, stale=stale, elites=elites)
    return state._replace(params=state.params | {"model": model}, memory=memory), finished.astype(jnp.float32)


def no_longer_better(metrics: Metrics) -> Array:
    """Whether a retraining is at its end."""
    return metrics["finished"] > 0


# --- Rollouts (algorithm 2, line 7) -----------------------------------------------------------------------------------
def predict(
    spec: Spec, config: Config, state: Any, obs: Array, action: Array, key: Key
) -> tuple[Array, Array, Array, Array]:
    """What follows `obs [B, D]` and `action [B, A]`: a draw of the next observation and its reward from an elite, and
    its end as a draw and as a probability, float32 `[B]`. Elites have equal shares of the rows, which are shuffled."""
    params, elites, count = state.params, state.memory.elites, len(obs)
    k_order, k_noise, k_end = jax.random.split(key, 3)
    padded = count + -count % config.elites
    order = jax.random.permutation(k_order, padded)
    chosen = {n: x if n.endswith("logvar") else x[elites] for n, x in params["model"].items()}
    inputs = params["inputs"].forward(jnp.concatenate([obs, action], -1))
    split = inputs[order % count].reshape(config.elites, -1, inputs.shape[-1])
    found = ensemble.predict(chosen, split)
    back = lambda x: x.reshape(padded, -1)[jnp.argsort(order)[:count]]  # noqa: E731
    mean, logvar = back(found.mean), back(found.logvar)
    drawn = mean + jnp.exp(logvar / 2) * jax.random.normal(k_noise, mean.shape)
    after, reward = obs + drawn[:, :-1], drawn[:, -1]
    if config.ends == "known":
        chance = KNOWN[spec.name].ends(after)
    else:
        chance = jax.nn.sigmoid(back(found.logits)[:, 0])
    ended = jax.random.uniform(k_end, chance.shape) < chance
    return after, reward, ended.astype(jnp.float32), chance


def branch(nets: sac.Networks, state: State, batch: Batch, key: Key) -> Updated:
    """The first row `[1, N']` of new rollouts: real states, and what the policy does there."""
    start = jax.tree.map(lambda x: x[:, 0], batch.record)
    obs = joined(nets.spec.obs, start.obs)
    action = nets.policy(state.params, obs).sample(key)
    row = start._replace(reward=jnp.zeros_like(start.reward), is_first=jnp.ones_like(start.is_first), action=action)
    return state, jax.tree.map(lambda x: x[None], row), {"started": (~start.is_last).mean(dtype=jnp.float32)}


def extend(nets: sac.Networks, config: Config, state: State, batch: Batch, key: Key) -> Updated:
    """One more row `[1, N']`, from the newest: what the model says follows, and what the policy does there.
    After its end a rollout stays where it is."""
    spec, last = nets.spec, jax.tree.map(lambda x: x[:, 0], batch.record)
    k_model, k_act = jax.random.split(key)
    obs = joined(spec.obs, last.obs)
    after, reward, ended, _ = predict(spec, config, state, obs, last.action, k_model)
    after = jnp.where(last.is_last[:, None], obs, after)
    reward = jnp.where(last.is_last, 0.0, reward)
    terminal = jnp.where(last.is_last, last.is_terminal, ended > 0)
    action = nets.policy(state.params, after).sample(k_act)
    first = jnp.zeros_like(last.is_first)
    row = Record(parted(spec.obs, after), reward, first, last.is_last | terminal, terminal, action, last.extras)
    going = 1.0 - (last.is_last | terminal).mean(dtype=jnp.float32)
    return state, jax.tree.map(lambda x: x[None], row), {"reward": reward.mean(), "going_on": going}


def rollout_length(config: Config, steps: Array) -> Array:
    """k after so many environment steps (appendix C): the schedule's lengths between its epochs, rounded down."""
    first, last, short, long = config.rollout_schedule
    epoch = jnp.maximum(steps - config.prefill, 0) // config.epoch_steps
    share = jnp.clip((epoch - first) / max(last - first, 1), 0.0, 1.0)
    return (short + jnp.floor(share * (long - short) + 1e-6)).astype(jnp.int32)


def rows_kept(config: Config, length: Array | int) -> Any:
    """Rows of the imagined replay that hold the rollouts of `retain` epochs, with `length` steps each."""
    return config.retain * max(1, config.epoch_steps // config.refresh) * (length + 1)


def draw(config: Config, state: Any, rings: Mapping[str, Ring], key: Key, size: int) -> Batch:
    """Pairs of records for the policy, `[size, 2]`: a share of real ones, the rest imagined."""
    k_real, k_imagined = jax.random.split(key)
    real = round(size * config.real_ratio)
    length = rollout_length(config, rings["real"].rows * config.envs)
    parts = []
    if real:
        parts.append(replay.sample(rings["real"], k_real, real, 2))
    if real < size:
        parts.append(replay.going_on(rings["imagined"], k_imagined, size - real, rows_kept(config, length)))
    return replay.mixed(*parts)


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build MBPO for an environment. ValueError unless it observes float vectors, actions are a `Box`, and its ends are
    known where they are to be."""
    nets = sac.networks(spec, config.layers, config.units)
    check_vectors("mbpo", spec.name, spec.obs)
    if config.ends == "known" and spec.name not in KNOWN:
        raise ValueError(
            f"when an episode of {spec.name} ends is not known: add it to jaxwm.envs.known.KNOWN or set --ends learned"
        )
    size, target = width(spec.obs), sac.entropy_target(spec, config.entropy_target)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        k_model, k_policy, k_bootstraps = jax.random.split(key, 3)
        sizes = size + spec.action.size, config.model_units, config.model_layers, size + 1
        model = ensemble.init(k_model, config.networks, *sizes, logits=int(config.ends == "learned"))
        policy = nets.init(k_policy)
        zero = jnp.zeros((), jnp.int32)
        best = {name: jnp.copy(x) for name, x in model.items() if not name.endswith("logvar")}
        bits, errors = jax.random.bits(k_bootstraps, (), jnp.uint32), jnp.full(config.networks, jnp.inf)
        memory = Memory(bits, best, errors, zero, zero, jnp.arange(config.elites))
        params = {"model": model, "inputs": ensemble.unit(size + spec.action.size), **policy}
        opt = {"model": ADAM.init(model), **sac.ADAM.init(policy)}
        return State(params, opt, optim.numbers(hyper), zero, jax.tree.map(jnp.copy, policy["critic"]), memory)

    def improve(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        return sac.update(nets, state, sac.transitions(spec, share.local_rows(batch)), key, target, share)

    everything = lambda state, ring, key, size: replay.all_pairs(ring)  # noqa: E731
    writes = Writes("imagined", config.rollouts * rows_kept(config, config.rollout_schedule[3]))
    steps = {
        "scale": TrainStep(partial(scale, spec), config.capacity, 2, everything),
        "model": TrainStep(partial(learn, spec, config), config.capacity, 2, everything),
        "branch": TrainStep(partial(branch, nets), config.rollouts, 1, writes=writes),
        "extend": TrainStep(
            partial(extend, nets, config), config.rollouts, 1, "latest", reads="imagined", writes=writes
        ),
        "sac": TrainStep(improve, config.batch_size, 2, partial(draw, config), True, ("real", "imagined")),
    }
    reset = lambda state, num_envs: ()  # noqa: E731
    imagine = partial(dream, nets, config)
    return Agent(init, reset, sac.acting(nets), steps, imagine, schedule(config), hyper_of(config))


def dream(
    nets: sac.Networks, config: Config, state: State, context: Record, given: Array | None, key: Key, horizon: int
) -> Dream:
    """Follow one elite after another from the last record of `context`; `latent` is the observation `[B, H, D]`."""
    spaces.check_dream(nets.spec.action, context, given, horizon)

    def step(obs: Array, x: tuple[Array, Array | None]) -> tuple[Array, Any]:
        k_act, k_model = jax.random.split(x[0])
        action = nets.policy(state.params, obs).sample(k_act) if x[1] is None else x[1]
        obs, reward, _, chance = predict(nets.spec, config, state, obs, action, k_model)
        return obs, Dream(parted(nets.spec.obs, obs), reward, 1.0 - chance, action, obs)

    start = joined(nets.spec.obs, context.obs)[:, -1]
    actions = None if given is None else given.swapaxes(0, 1)
    return jax.lax.scan(step, start, (jax.random.split(key, horizon), actions))[1].swapped()


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Random play; then the model, its rollouts, and environment steps with updates of the policy, forever."""
    longer = partial(rollout_length, config)
    rows = max(1, config.refresh // config.envs)
    steps = Repeat(rows, (Collect(config.envs), Train("sac", config.updates_per_step * config.envs)))
    model = Train("scale"), Train("model", config.epochs, no_longer_better)
    body = *model, Train("branch"), Train("extend", longer), steps
    return prefill(config.prefill, config.envs, 2), Repeat(FOREVER, body)


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {
    "hopper": Config(),
    "inverted-pendulum": Config(
        epoch_steps=250, rollout_schedule=(1, 15, 1, 1), entropy_target=-0.05, updates_per_step=10,
        prefill=500, capacity=20_000,
    ),
    "walker2d": Config(rollout_schedule=(20, 150, 1, 1), entropy_target=-3.0, capacity=300_000),
    "halfcheetah": Config(rollout_schedule=(20, 150, 1, 1), entropy_target=-3.0, updates_per_step=40, capacity=400_000),
    "ant": Config(rollout_schedule=(20, 100, 1, 25), entropy_target=-4.0, capacity=300_000),
    "humanoid": Config(
        model_units=400, refresh=1000, rollout_schedule=(20, 300, 1, 25), retain=5, entropy_target=-2.0,
        capacity=300_000,
    ),
    "small": Config(
        model_layers=2, model_units=64, weight_decay=(1e-5, 2.5e-5, 5e-5), epoch_steps=250, rollouts=2000,
        rollout_schedule=(1, 15, 1, 1), units=64, lr=1e-3, entropy_target=None, batch_size=128, updates_per_step=10,
        prefill=500, capacity=20_000,
    ),
}  # fmt: skip
"""Those of the official code, and a small one for two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="small", year=2019, env="gymnax/Pendulum-v1", steps=5000,
    observations=("vector",), actions=("Box",), copies={"slow": "critic"},
    summary="soft actor-critic on short rollouts of an ensemble, branched from real states (Janner et al. 2019)",
    paper="Janner et al., When to Trust Your Model: Model-Based Policy Optimization",
    sees="the numbers of the observation, standardised",
    predicts="bootstrapped ensemble of probabilistic MLPs with elites: change and reward; end known or learned",
    acts="soft actor-critic, learned from imagined steps and a few real ones",
)  # fmt: skip
