"""World Models (Ha & Schmidhuber 2018): a variational autoencoder, an MDN-RNN, and a linear controller by CMA-ES.

Sees through V, a convolutional autoencoder trained on random play; predicts with M, an LSTM whose output is a mixture
of normals over the next code; acts with C, a linear map of code and LSTM state. The three are trained one after the
other: C by evolution, wholly inside M's dreams (TakeCover) or on the real environment (CarRacing, `real`).

Letters: N environments, B batch, L records, Z size of a code, P candidates, R rollouts of each, A width of an action.

What the paper leaves open, or its official code does otherwise:

- codes are sampled everywhere, when M is trained and when C acts, as in the code;
- a discrete action has one controller output: tanh, cut into equal parts in the order of the actions (for three of
  them at -1/3 and 1/3); M sees it as one number in [-1, 1]. `Box` actions are the tanh itself, so CarRacing's brake is
  half pressed at output 0, where the code clips it to 0;
- a dream ends where M's end logit is above 0. Ends weigh `done_weight` in M's loss, as in the code, so that is a
  probability of 1 / (1 + done_weight);
- random play keeps an action for `repeat` steps on average (drawn anew with probability 1 / repeat); the code draws
  the number of steps uniformly;
- the temperature divides the mixture's logits and multiplies its variances, as in the code;
- M is trained on sequences from anywhere in the replay, not on padded whole episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxwm import replay
from jaxwm.agents.system import System, hyper_of
from jaxwm.control.evolution import Evolution, cma_es
from jaxwm.control.policy import check_mode
from jaxwm.errors import Amount, Count, Natural, Positive, Several, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.learning.step import Remembering as State
from jaxwm.models.mdn_rnn import MDNRNN, Prediction
from jaxwm.nets.layers import Linear, apply
from jaxwm.nets.lstm import LSTMState
from jaxwm.nets.sensors import sensors
from jaxwm.nets.strided import StridedDecoder, StridedEncoder, check_side
from jaxwm.replay import Ring
from jaxwm.schedule import Collect, Repeat, Train
from jaxwm.spaces import blank, check_dream, choices, random_action, wide
from jaxwm.types import Acted, Agent, Array, Batch, Box, Discrete, Dream, Key, Record, Spec, Step, TrainStep, Varies

BLOCK = 16  # Rows of the replay that one update of "encode" looks at.


@dataclass(frozen=True)
class Config:
    """Settings of World Models; defaults are those of TakeCover, with C trained in dreams."""

    # Sizes.
    codes: Count = 64  # Size of a code, z.
    depth: Count = 32  # Channels of V's convolutions: depth, 2, 4 and 8 times as many.
    units: Count = 512  # Width of the LSTM.
    mixtures: Count = 5  # Normals in the mixture of every entry of a code.
    done: bool = True  # M predicts the end of the episode.
    reward: bool = False  # M predicts the reward; without it a dreamed step is worth `alive`.
    cell: bool = True  # C sees the LSTM's cell next to its hidden state.
    bias: bool = False  # C has a bias for each output.
    # Data.
    envs: Count = 16  # Parallel environments of each member.
    random_steps: Count = 500_000  # Environment steps of random play; about 10,000 episodes of TakeCover.
    repeat: Count = 5  # Steps for which random play keeps an action, on average.
    capacity: Count = 500_000
    """Replay size of a member in environment steps (never more than the run collects); images are its bulk."""
    # V.
    vision_updates: Natural = 50_000  # Updates of V: ten passes over the data.
    vision_batch: Count = 100  # Images of an update.
    vision_lr: Varies[Positive] = 1e-4  # Learning rate of V.
    free_nats: Amount = 0.5  # KL of each entry of a code, on average over them, below which it is not pushed.
    # M.
    memory_updates: Natural = 4000  # Updates of M.
    memory_batch: Count = 100  # Sequences of an update.
    memory_length: Count = 500  # Transitions of a sequence; one record more is read.
    memory_lr: Varies[Positive] = 1e-3  # Learning rate of M.
    clip: Positive = 1.0  # Largest gradient of any of M's weights.
    done_weight: Amount = 10.0  # Weight of steps that end an episode, in the loss of M's end flag.
    # C.
    generations: Natural = 200  # Generations of CMA-ES.
    population: Several = 64  # Candidates of a generation.
    rollouts: Count = 16
    """Dreams, or real episodes, of each candidate; all candidates meet the same starts and the same noise."""
    std: Positive = 0.1  # First step size of CMA-ES.
    weight_decay: Amount = 0.01  # Fitness taken off for the mean square of a candidate's weights.
    temperature: Varies[Positive] = 1.15  # Temperature of dreams: above 1 they are less certain, and harder to exploit.
    dream_length: Count = 525  # Longest dream, or longest episode of a real rollout, in steps.
    alive: float = 4.0  # Reward of a dreamed step that is no end, where M does not predict rewards: TakeCover's 4 tics.
    real: bool = False  # Evolve C on the real environment instead: environment n plays candidate n % population.

    def __post_init__(self):
        check_types(self)
        if not self.real and not self.done and not self.reward:
            raise ValueError("dreams that neither end nor pay teach nothing: set --done or --reward, or --real")
        if self.real and self.envs != self.population * self.rollouts:
            raise ValueError(
                f"with --real every environment plays one rollout of one candidate: set --envs to population x "
                f"rollouts, {self.population * self.rollouts}, not {self.envs}"
            )


# --- Losses of V and M ------------------------------------------------------------------------------------------------
def vision_loss(nets: Networks, params: Any, image: Array, key: Key, share: Share = ALONE) -> Losses:
    """Squared error summed over images `[B, 64, 64, C]`, and the KL to a standard normal with a floor (V, A.1)."""
    chex.assert_rank(image, 4)
    chex.assert_type(image, jnp.uint8)
    config = nets.config
    mean, log_var = apply(nets.vision, params, image, method="encode")
    painted = apply(nets.vision, params, draw_codes({"mean": mean, "log_var": log_var}, key, share), method="decode")
    error = jnp.square(painted - image.astype(jnp.float32) / 255).sum((1, 2, 3)).mean()
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_var) - log_var - 1).sum(-1)
    total = error + jnp.maximum(kl, config.free_nats * config.codes).mean()
    return total, ({}, {"loss": total, "squared_error": error, "kl": kl.mean()})


def memory_loss(nets: Networks, params: Any, record: Record, key: Key, share: Share = ALONE) -> Losses:
    """Negative log-likelihood of an entry of the next code, and the losses of end and reward (M, A.2).
    M predicts each next record of sequences `[B, L + 1]`."""
    chex.assert_equal_shape((record.reward, record.is_first, record.is_terminal))
    chex.assert_equal_shape_prefix((record.reward, record.action, record.extras["mean"]), 2)
    code, first = draw_codes(record.extras, key, share), record.is_first
    inputs = code[:, :-1], nets.as_numbers(record.action[:, :-1]), first[:, :-1]
    start = nets.memory.initial(len(code))
    _, hidden = apply(nets.memory, params, start, *inputs, method="unroll")
    guess, valid = nets.predict({"memory": params}, hidden), 1.0 - first[:, 1:]
    mean = lambda x: share.weighted_mean(x, valid)  # noqa: E731
    losses = {"code": mean(-guess.code.log_prob(code[:, 1:]).mean(-1))}
    if guess.done is not None:
        end = record.is_terminal[:, 1:].astype(jnp.float32)
        weight = 1 + (nets.config.done_weight - 1) * end
        losses["done"] = mean(weight * (jax.nn.softplus(guess.done) - guess.done * end))
    if guess.reward is not None:
        losses["reward"] = mean(jnp.square(guess.reward - record.reward[:, 1:]))
    total = jnp.stack(list(losses.values())).sum()
    return total, ({}, {"loss": total} | {f"loss/{name}": loss for name, loss in losses.items()})


def draw_codes(codes: dict[str, Array], key: Key, share: Share = ALONE) -> Array:
    """Draw codes `[B, ..., Z]` from V's normals."""
    return codes["mean"] + jnp.exp(codes["log_var"] / 2) * share.normal(key, codes["mean"].shape)


# --- Dreams and evolution of C ----------------------------------------------------------------------------------------
def dream_noise(key: Key, shape: tuple[int, ...]) -> Array:
    """The noise behind one dreamed step `[2, *shape]`: uniform, then normal."""
    k_uniform, k_normal = jax.random.split(key)
    return jnp.stack([jax.random.uniform(k_uniform, shape), jax.random.normal(k_normal, shape)])


def dream_step(nets: Networks, params: Any, hidden: Array, noise: Array, temperature: Array) -> tuple[Array, ...]:
    """The next code `[..., Z]`, end logit and reward `[...]`, from M's state; `noise [2, ..., Z]` decides."""
    guess = nets.predict(params, hidden)
    code = guess.code.tempered(temperature).pick(*noise)
    end = jnp.full(hidden.shape[:-1], -jnp.inf) if guess.done is None else guess.done
    return code, end, jnp.full_like(end, nets.config.alive) if guess.reward is None else guess.reward


def dreamed_returns(nets: Networks, params: Any, weights: Array, starts: Array, key: Key, temperature: Array) -> Array:
    """Undiscounted returns `[P, R]` of candidates `[P, D]` in dreams from first codes `[R, Z]`.
    All candidates dream with the same noise. A dream ends where M says so, or after `dream_length` steps; the program
    stops when the last one has ended."""
    chex.assert_rank((weights, starts), 2)
    config, size = nets.config, (len(weights), len(starts))
    code = jnp.broadcast_to(starts, (*size, starts.shape[-1]))
    zeros = jnp.zeros((*size, config.units))
    weights = weights[:, None]

    def go(carry: tuple) -> Array:
        t, _, _, alive, _ = carry
        return (t < config.dream_length) & alive.any()

    def turn(carry: tuple) -> tuple:
        t, code, lstm, alive, total = carry
        action = nets.as_numbers(nets.as_action(nets.control(weights, code, lstm)))
        lstm = nets.advance(params, lstm, code, action, jnp.broadcast_to(t == 0, size))
        noise = jnp.broadcast_to(dream_noise(jax.random.fold_in(key, t), starts.shape)[:, None], (2, *code.shape))
        code, end, reward = dream_step(nets, params, lstm.hidden, noise, temperature)
        # without a reward head the step that ends the dream pays nothing
        paid = alive if config.reward else alive & (end <= 0)
        return t + 1, code, lstm, alive & (end <= 0), total + paid * reward

    start = (jnp.zeros((), jnp.int32), code, LSTMState(zeros, zeros), jnp.ones(size, bool), jnp.zeros(size))
    return jax.lax.while_loop(go, turn, start)[-1]


def evolve(config: Config, evolution: Evolution, state: State, returns: Array, key: Key) -> Updated:
    """Draw the next candidates, from the mean returns `[P]` of these: one generation of CMA-ES."""
    chex.assert_shape(returns, (config.population,))
    k_tell, k_ask = jax.random.split(key)
    candidates = state.memory.candidates
    fitness = returns - config.weight_decay * jnp.square(candidates).mean(-1)
    strategy = evolution.tell(k_tell, candidates, fitness, state.opt["controller"])
    params, (candidates, strategy) = state.params | {"controller": strategy.mean}, evolution.ask(k_ask, strategy)
    opt, kept = state.opt | {"controller": strategy}, state.memory._replace(candidates=candidates)
    state = state._replace(params=params, opt=opt, memory=kept, step=state.step + 1)
    return state, {}, {"mean": returns.mean(), "best": returns.max(), "std": strategy.std}


# --- Networks ---------------------------------------------------------------------------------------------------------
class Memory(NamedTuple):
    """The candidates of this generation `[P, D]`, and how many rows have codes of this V."""

    candidates: Array
    encoded: Array


class Carry(NamedTuple):
    """The policy's memory: the LSTM's state, and the action that random play keeps."""

    lstm: LSTMState
    action: Array


class Vision(nn.Module):
    """V: images uint8 `[..., 64, 64, C]` to means and log-variances of codes `[..., Z]`, and codes to images."""

    codes: int
    channels: int
    depth: int

    def setup(self):
        self.encoder = StridedEncoder(self.depth)
        self.mean = Linear(32 * self.depth, self.codes)
        self.log_var = Linear(32 * self.depth, self.codes)
        self.decoder = StridedDecoder(self.channels, self.depth)

    def __call__(self, image: Array) -> Array:
        return self.decode(self.encode(image)[0])

    def encode(self, image: Array) -> tuple[Array, Array]:
        """Means and log-variances of codes `[..., Z]`."""
        feat = self.encoder(image)
        return self.mean(feat), self.log_var(feat)

    def decode(self, code: Array) -> Array:
        """Images `[..., 64, 64, C]` in [0, 1]."""
        return jax.nn.sigmoid(self.decoder(code))


@dataclass(frozen=True)
class Networks:
    """V, M and C over explicit parameters, for one kind of environment."""

    spec: Spec
    config: Config

    @property
    def image(self) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the one sensor. ValueError unless it is an image of 64 x 64."""
        found = sensors(self.spec.obs)
        name, sensor = next(iter(found.items()))
        if len(found) > 1 or sensor.dtype != jnp.uint8 or len(sensor.shape) != 3:
            raise ValueError(
                f"world-models wants one image (uint8 [64, 64, C]); {self.spec.name} has {self.spec.obs}: take "
                "vizdoom/TakeCover, or box2d/CarRacing with --env-option image_size=64"
            )
        check_side(sensor.shape)
        return name, sensor.shape

    @property
    def action_width(self) -> int:
        """Outputs of C, and width of an action for M."""
        return self.spec.action.size if isinstance(self.spec.action, Box) else 1

    @property
    def features(self) -> int:
        """Inputs of C."""
        return self.config.codes + self.config.units * (1 + self.config.cell)

    @property
    def weights(self) -> int:
        """Parameters of C, D."""
        return (self.features + self.config.bias) * self.action_width

    @property
    def vision(self) -> Vision:
        """V."""
        return Vision(self.config.codes, self.image[1][-1], self.config.depth)

    @property
    def memory(self) -> MDNRNN:
        """M."""
        c = self.config
        return MDNRNN(c.codes, self.action_width, c.units, c.mixtures, c.done, c.reward)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters of V and M, and a controller of zeros."""
        k_vision, k_memory = jax.random.split(key)
        code, action = jnp.zeros((1, self.config.codes)), jnp.zeros((1, self.action_width))
        vision = self.vision.init(k_vision, jnp.zeros((1, *self.image[1]), jnp.uint8))
        memory = self.memory.init(k_memory, code, action)
        return {"vision": vision, "memory": memory, "controller": jnp.zeros(self.weights)}

    # --- V and M ----------------------------------------------------------------------------------------------------
    def encode(self, params: Any, obs: Any) -> dict[str, Array]:
        """`mean` and `log_var` `[..., Z]` of observations."""
        mean, log_var = apply(self.vision, params["vision"], sensors(obs)[self.image[0]], method="encode")
        return {"mean": mean, "log_var": log_var}

    def decode(self, params: Any, code: Array) -> Any:
        """Observations of codes `[..., Z]`: uint8 images."""
        painted = apply(self.vision, params["vision"], code, method="decode")
        image = jnp.round(255 * painted).astype(jnp.uint8)
        return {self.image[0]: image} if isinstance(self.spec.obs, Mapping) else image

    def advance(self, params: Any, lstm: LSTMState, code: Array, action: Array, first: Array) -> LSTMState:
        """M's state after a step: it has seen `code [..., Z]` and `action`, as numbers `[..., A]`."""
        return apply(self.memory, params["memory"], lstm, code, action, first, method="step")

    def predict(self, params: Any, hidden: Array) -> Prediction:
        """What M predicts from its hidden state `[..., U]`."""
        return apply(self.memory, params["memory"], hidden, method="predict")

    # --- C ----------------------------------------------------------------------------------------------------------
    def control(self, weights: Array, code: Array, lstm: LSTMState) -> Array:
        """C's outputs `[..., A]` in [-1, 1]; leading axes of `weights [..., D]` are those of candidates."""
        kernel, bias = jnp.split(weights, [self.features * self.action_width], -1)
        kernel = kernel.reshape(*weights.shape[:-1], self.features, self.action_width)
        feat = jnp.concatenate([code, lstm.hidden] + ([lstm.cell] if self.config.cell else []), -1)
        return jnp.tanh(jnp.einsum("...f,...fa->...a", feat, kernel) + (bias if self.config.bias else 0.0))

    def as_action(self, output: Array) -> Array:
        """The environment's action behind C's outputs `[..., A]`."""
        if isinstance(self.spec.action, Box):
            return output
        options = choices(self.spec.action)[0]
        return jnp.clip(jnp.floor((output[..., 0] + 1) / 2 * options), 0, options - 1).astype(jnp.int32)

    def as_numbers(self, action: Array) -> Array:
        """An action as M sees it, `[..., A]`."""
        if isinstance(self.spec.action, Box):
            return action
        options = choices(self.spec.action)[0]
        return (2 * action / max(1, options - 1) - 1.0)[..., None].astype(jnp.float32)


# --- The train steps --------------------------------------------------------------------------------------------------
def train_steps(nets: Networks, evolution: Evolution, adam: Any, capped: Any) -> dict[str, TrainStep]:
    """V, the codes of what was seen, M and C."""
    config = nets.config

    def vision(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """V reconstructs images `[B, 1]`."""
        image = share.local_rows(sensors(batch.record.obs)[nets.image[0]][:, 0])
        objective = lambda params: vision_loss(nets, params, image, key, share)  # noqa: E731
        state, _, metrics = gradient_step(state, objective, adam, state.hyper["vision_lr"], "vision", share=share)
        stale = state.memory._replace(encoded=jnp.zeros((), jnp.int32))
        return state._replace(memory=stale), {}, metrics

    def encode(state: State, batch: Batch, key: Key) -> Updated:
        """V's codes go into the replay, a block of rows at a time."""
        done = state.memory.encoded + BLOCK
        state = state._replace(memory=state.memory._replace(encoded=done), step=state.step + 1)
        return state, nets.encode(state.params, batch.record.obs), {"rows": done.astype(jnp.float32)}

    def memory(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """M predicts each next record of sequences `[B, L + 1]`."""
        record = share.local_rows(batch.record)
        objective = lambda params: memory_loss(nets, params, record, key, share)  # noqa: E731
        return gradient_step(state, objective, capped, state.hyper["memory_lr"], "memory", share=share)

    def controller(state: State, batch: Batch, key: Key) -> Updated:
        """Evolve one generation in dreams and report the dreamed return of the last mean."""
        k_code, k_dream, k_evolve = jax.random.split(key, 3)
        first = draw_codes(batch.record.extras, k_code)[:, 0]
        everyone = jnp.concatenate([state.memory.candidates, state.params["controller"][None]])
        temperature = state.hyper["temperature"]
        returns = dreamed_returns(nets, state.params, everyone, first, k_dream, temperature).mean(1)
        state, _, metrics = evolve(config, evolution, state, returns[:-1], k_evolve)
        return state, {}, metrics | {"dream_return": returns[-1]}

    def real_controller(state: State, batch: Batch, key: Key) -> Updated:
        """Evolve one generation on real episodes, the first ones in sequences `[N, L]`."""
        record = batch.record
        ended = jnp.cumsum(record.is_last, 1) - record.is_last  # ends before each record
        returns = (record.reward * (ended == 0)).sum(1)
        return evolve(config, evolution, state, returns.reshape(-1, config.population).mean(0), key)

    starts = lambda state, ring, key, size: replay.starts(ring, key, size)  # noqa: E731
    dreamed = TrainStep(controller, config.rollouts, 1, starts)
    played = TrainStep(real_controller, config.envs, config.dream_length + 1, "latest")
    return {
        "vision": TrainStep(vision, config.vision_batch, 1, shared=True),
        "encode": TrainStep(encode, config.envs, BLOCK, next_block),
        "memory": TrainStep(memory, config.memory_batch, config.memory_length + 1, shared=True),
        "controller": played if config.real else dreamed,
    }


def next_block(state: State, ring: Ring, key: Key, size: int) -> Batch:
    """The next rows without codes, of all environments of the ring."""
    first = jnp.minimum(replay.oldest(ring) + state.memory.encoded, ring.rows - BLOCK)
    return replay.across(ring, first, ring.data.reward.shape[1], BLOCK)


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build World Models for an environment of images; replay extras are V's codes, `mean` and `log_var` `[N, Z]`.
    `State.params` holds "vision", "memory" and "controller", the mean of CMA-ES.
    ValueError unless the observation is one image of 64 x 64 and actions are `Discrete` or `Box`."""
    if not isinstance(spec.action, Discrete | Box):
        raise ValueError(f"world-models wants Discrete or Box actions; {spec.name} has {spec.action}")
    nets = Networks(spec, config)
    nets.image  # noqa: B018  refuses observations that do not fit
    evolution = cma_es(config.population, nets.weights, config.std)
    adam = optax.scale_by_adam()
    capped = optax.chain(optax.clip(config.clip), adam)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        k_params, k_evolution, k_ask = jax.random.split(key, 3)
        params = nets.init(k_params)
        candidates, strategy = evolution.ask(k_ask, evolution.init(k_evolution, params["controller"]))
        opt = {"vision": adam.init(params["vision"]), "memory": capped.init(params["memory"]), "controller": strategy}
        zero = jnp.zeros((), jnp.int32)
        return State(params, opt, optim.numbers(hyper), zero, Memory(candidates, zero))

    reset = lambda state, num_envs: Carry(nets.memory.initial(num_envs), blank(spec.action, num_envs))  # noqa: E731
    steps = train_steps(nets, evolution, adam, capped)
    return Agent(init, reset, partial(act, nets), steps, partial(imagine, nets), schedule(config), hyper_of(config))


def act(nets: Networks, state: State, carry: Carry, step: Step, key: Key, mode: str) -> Acted:
    """See with V, act with C, remember with M; see `Agent.act`."""
    check_mode(mode)
    config, num = nets.config, len(step.reward)
    k_action, k_code = jax.random.split(key)
    if mode == "random":
        action = sticky_action(nets.spec, config.repeat, carry.action, step.is_first, k_action)
        none = jnp.zeros((num, config.codes))
        return carry._replace(action=action), action, {"mean": none, "log_var": none}
    codes = nets.encode(state.params, step.obs)
    code = draw_codes(codes, k_code)
    lstm = jax.tree.map(lambda x: jnp.where(step.is_first[:, None], 0.0, x), carry.lstm)
    weights = state.params["controller"]
    if mode == "explore" and config.real:
        weights = state.memory.candidates[jnp.arange(num) % config.population]
    action = nets.as_action(nets.control(weights, code, lstm))
    lstm = nets.advance(state.params, lstm, code, nets.as_numbers(action), step.is_first)
    return Carry(lstm, action), action, codes


def imagine(nets: Networks, state: State, context: Record, given: Array | None, key: Key, horizon: int) -> Dream:
    """Roll M on from `context [B, L]`; the end is as likely as it was in M's data, whatever ends weighed."""
    check_dream(nets.spec.action, context, given, horizon)
    params, size, config = state.params, len(context.reward), nets.config
    code = nets.encode(params, context.obs)["mean"]
    past = code[:, :-1], nets.as_numbers(context.action[:, :-1]), context.is_first[:, :-1]
    lstm, _ = apply(nets.memory, params["memory"], nets.memory.initial(size), *past, method="unroll")
    # a last record that begins an episode knows nothing of what came before
    lstm = jax.tree.map(lambda x: jnp.where(context.is_first[:, -1:], 0.0, x), lstm)

    def turn(carry: tuple[Array, LSTMState], x: tuple[Array, Array, Array]) -> tuple[Any, Any]:
        (code, lstm), (t, first, chosen) = carry, x
        action = chosen if given is not None else nets.as_action(nets.control(params["controller"], code, lstm))
        lstm = nets.advance(params, lstm, code, nets.as_numbers(action), first)
        noise = dream_noise(jax.random.fold_in(key, t), code.shape)
        code, end, reward = dream_step(nets, params, lstm.hidden, noise, state.hyper["temperature"])
        return (code, lstm), (code, end, reward, action)

    first = jnp.zeros((horizon, size), bool).at[0].set(context.is_first[:, -1])
    chosen = jnp.zeros((horizon, 1)) if given is None else given.swapaxes(0, 1)
    _, found = jax.lax.scan(turn, (code[:, -1], lstm), (jnp.arange(horizon), first, chosen))
    code, end, reward, action = found
    cont = 1 - jax.nn.sigmoid(end - jnp.log(jnp.maximum(config.done_weight, 1e-6)))
    reward = reward if config.reward else reward * cont
    return Dream(nets.decode(params, code), reward, cont, action, {"code": code}).swapped()


def sticky_action(spec: Spec, repeat: int, kept: Array, first: Array, key: Key) -> Array:
    """Random actions that stay for `repeat` steps on average, but not into the next episode: motion, not trembling."""
    k_new, k_action = jax.random.split(key)
    new = first | (jax.random.uniform(k_new, first.shape) < 1 / repeat)
    fresh = random_action(spec.action, k_action, len(first))
    return jnp.where(wide(new, kept), fresh, kept)


def schedule(config: Config) -> tuple[Collect | Train | Repeat, ...]:
    """Random play; V, the codes of all that was seen, M, and C, one after the other."""
    blocks = lambda steps: -(-jnp.minimum(steps, config.capacity) // (config.envs * BLOCK))  # noqa: E731
    vision, memory = Train("vision", config.vision_updates), Train("memory", config.memory_updates)
    model = Collect(config.random_steps, "random"), vision, Train("encode", blocks), memory
    if not config.real:
        return *model, Train("controller", config.generations)
    generation = Collect(config.envs * (config.dream_length + 1), "explore", fresh=True), Train("controller")
    return *model, Repeat(config.generations, generation)


# --- Presets ----------------------------------------------------------------------------------------------------------
PRESETS = {
    "takecover": Config(),
    "carracing": Config(
        codes=32, units=256, done=False, cell=False, bias=True, real=True, envs=1024, random_steps=10_000_000,
        capacity=10_000_000, vision_updates=1_000_000, memory_length=999, dream_length=1000,
    ),
    "takecover-small": Config(
        codes=32, depth=8, units=128, envs=8, random_steps=16_000, capacity=16_000, vision_updates=600, vision_lr=1e-3,
        vision_batch=32, memory_updates=400, memory_batch=32, memory_length=50, memory_lr=3e-3, generations=25,
        population=32, rollouts=8,
    ),
}  # fmt: skip
"""Published settings (CarRacing's replay takes 123 GB, as the paper's data did) and a small one for two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="takecover-small", year=2018, env="vizdoom/TakeCover", steps=16000,
    observations=("image",), actions=("Discrete", "Box"), offline=True, renamed={"horizon": "dream_length"},
    summary="autoencoder, mixture density LSTM, controller evolved in dreams (Ha & Schmidhuber 2018)",
    paper="Ha and Schmidhuber, World Models",
    sees="convolutional variational autoencoder",
    predicts="LSTM with a mixture density for each latent; done head, reward head on request",
    acts="linear controller evolved by CMA-ES, inside dreams or in the environment",
)  # fmt: skip
