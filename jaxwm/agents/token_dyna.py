"""Dyna in a transformer over nearest-neighbour tokens (Dedieu et al. 2025: improving transformer world models).

Sees a frame as patches, each named by the nearest of a growing stock of patches that were met before; nothing is
trained for that, and a code keeps its meaning for ever. Predicts all tokens of the next frame in one pass of a
transformer (block teacher forcing). Acts with a recurrent actor-critic that learns from what really happened and, after
a warm-up, from dreams as well.

Letters: N environments, B batch, T frames of a window, K patches of a frame, V codes, P numbers of a patch, H frames of
a dream.

What differs from the paper, or the paper leaves open:

- the policy learns by REINFORCE with lambda-returns, one step on each stretch of real play, not by several epochs of
  PPO; its network is the LSTM of IRIS, and it sees the frame itself, not its patches;
- the stock grows by the patch of a batch that is farthest from all codes, again and again, as long as one is farther
  than the threshold; the paper goes through them in order. Once it is full, patches take the nearest code there is;
- windows cross ends of episodes, across which nothing attends or is learned;
- a step of a dream counts as much as it is likely to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxwm.agents.system import System, hyper_of
from jaxwm.control.frame_policy import Experience, FramePolicy, reinforce_loss
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, Several, check_bins, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, State, Updated, fresh_state, gradient_step
from jaxwm.models.frame_dreams import FrameDreams, check_window
from jaxwm.models.token_world import TokenWorld, accuracies
from jaxwm.nets.lstm import LSTMState
from jaxwm.nets.quantiser import as_floats, as_frame, cropped, from_cells, grid, nearest, padded, picture, to_cells
from jaxwm.nets.sensors import kind
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, after
from jaxwm.types import Acted, Agent, Array, Batch, Dream, Key, Record, Spec, Step, TrainStep, Varies

FAR = 1e3  # Every number of a code that is not there yet: no patch comes near it.


@dataclass(frozen=True)
class Config:
    """Settings of Dyna over nearest-neighbour tokens. Defaults are sizes for images on a GPU; they are not checked
    against the numbers of the paper."""

    # Tokens.
    patch: Count = 7  # Pixels, or cells, of the sides of a patch.
    codes: Several = 4096  # Most codes of the stock.
    threshold: Positive = 0.75
    """Squared distance from all codes, with pixels in 0..1, above which a patch is a new code."""
    grow: Count = 64  # Most new codes of an update.
    # World model.
    frames: int = 20  # Frames of a window, and the most that the model remembers.
    layers: Count = 3  # Layers of the transformer.
    heads: Count = 8  # Its heads.
    width: Count = 128  # Its width; its hidden layers are four times as wide.
    dropout: float = 0.1  # Share of what each part of a layer adds that is left out in learning.
    sign_rewards: bool = False  # Learn only the sign of rewards, not their value in `bins` bins.
    bins: int = 255  # Bins of rewards that are not signs.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the transformer; parameters, norms and losses stay float32. Use bfloat16 on GPUs."""
    # Behaviour.
    policy_depth: Count = 32  # Channels of the policy's first two convolutions; two more have twice as many.
    policy_layers: Count = 1  # Layers of the policy's eyes, where it sees planes.
    units: Count = 512  # Width of its LSTM, and of those layers.
    burn_in: Natural = 5  # Frames from which the LSTM remembers when a dream, or a stretch of real play, begins.
    context: Count = 1  # Frames that the world model sees before a dream, the first one included.
    imag_length: int = 20  # Frames of a dream, the first one included.
    lam: Varies[Fraction] = 0.65  # Lambda of the returns.
    discount: Varies[Fraction] = 0.925  # Discount per step.
    entropy: Varies[Amount] = 0.01  # Weight of the policy's entropy.
    epsilon: Varies[Fraction] = 0.0  # Share of random actions while collecting.
    # Order.
    envs: Count = 48  # Parallel environments of each member.
    rollout: Count = 96  # Steps of each environment in a round.
    model_updates: Natural = 500  # Updates of the world model in a round.
    dream_updates: Natural = 150  # Updates of the policy in dreams in a round; 0: no dreams.
    model_from: Natural = 0  # Environment steps from which on the world model learns.
    dream_from: Natural = 200_000  # The same for the policy in dreams, the warm-up.
    capacity: Count = 128_000  # Replay size of a member in environment steps (never more than the run collects).
    # Optimisers.
    model_batch: Count = 16  # Windows of an update.
    dream_batch: Count = 48  # Dreams of an update.
    model_lr: Varies[Positive] = 1e-3  # Learning rate of the world model.
    policy_lr: Varies[Positive] = 4.5e-4  # Learning rate of the policy.
    clip: Positive = 0.5  # Largest norm of a part's gradient.

    def __post_init__(self):
        check_types(self)
        check_number("frames", self.frames, least=2, whole=True)
        check_number("imag_length", self.imag_length, least=2, whole=True)
        check_number("dropout", self.dropout, least=0, most=0.99)
        check_bins(self.bins)
        check_window(self.frames, self.context, self.imag_length, unseen=2)


# --- Tokens -----------------------------------------------------------------------------------------------------------
def grown(book: Array, patches: Array, threshold: float, most: int) -> Array:
    """The stock `[V, P]` with new codes from patches `[R, P]`, `most` at once: as long as a patch is farther than the
    threshold from all codes and there is room, the farthest one becomes a code."""
    chex.assert_equal(book.shape[-1], patches.shape[-1])
    apart = lambda code: jnp.square(patches - code).sum(-1)  # noqa: E731
    gap = apart(book[nearest(patches, book)])  # [R], of the nearest code

    def add(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        book, gap = state
        place, chosen = size_of(book), gap.argmax()
        new = (gap[chosen] > threshold) & (place < len(book))
        code = jnp.where(new, patches[chosen], FAR)
        book = book.at[jnp.where(new, place, len(book))].set(code, mode="drop")
        return (book, jnp.minimum(gap, apart(code))), None

    return jax.lax.scan(add, (book, gap), None, most)[0][0]


def size_of(book: Array) -> Array:
    """Codes of a stock `[V, P]` that are there, int32."""
    return (book[:, 0] < FAR).sum(dtype=jnp.int32)


# --- Losses -----------------------------------------------------------------------------------------------------------
def model_loss(nets: Networks, params: Any, tokens: Array, record: Record, key: Key, share: Share = ALONE) -> Losses:
    """Cross-entropies of all tokens of the next frame at once, of rewards and of ends (block teacher forcing), in
    windows `tokens [B, T + 1, K]`; and metrics."""
    chex.assert_shape((record.reward, record.is_first), tokens.shape[:2])
    world, now, target = nets.world, jax.tree.map(lambda x: x[:, :-1], record), tokens[:, 1:]
    hidden = world.window(params, tokens[:, :-1], now.action, now.is_first, key, share)
    losses = world.outcome_losses(params, hidden[:, :, -1], record, share)
    guess = world.next_token(params, hidden[:, :, :-1])
    same = jnp.repeat(1.0 - record.is_first[:, 1:, None], world.tokens, 2)
    losses["token"] = share.weighted_mean(-guess.log_prob(target), same)
    total = sum(losses.values(), jnp.zeros(()))
    exact = (guess.mode() == target).all(-1).astype(jnp.float32)
    metrics = {"loss": total, "accuracy/frame": share.weighted_mean(exact, same[..., 0])}
    metrics |= {f"loss/{name}": loss for name, loss in losses.items()}
    return total, ({}, metrics | accuracies(guess, target, tokens[:, :-1], same, share))


def played(nets: Networks, params: Any, record: Record) -> Experience:
    """What really happened in sequences `[B, L]`, of which the first frames only remind the policy."""
    shown = lambda x, part: jax.tree.map(lambda leaf: leaf[:, part].swapaxes(0, 1), x)  # noqa: E731
    early, frame = slice(0, nets.config.burn_in), nets.dreams.frames(record.obs)
    memory = nets.policy.burnt_in(params["policy"], frame[:, early], record.is_first[:, early])
    now: Record = shown(record._replace(obs=frame, extras={}), slice(nets.config.burn_in, None))
    cont, weight = 1.0 - now.is_terminal, 1.0 - now.is_last
    seen = Experience(now.obs, now.action, now.reward, cont, now.is_first, now.is_last, weight, memory)
    return jax.tree.map(jax.lax.stop_gradient, seen)


# --- Parts ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Networks:
    """The parts over explicit parameters, for one kind of environment."""

    spec: Spec
    config: Config

    @property
    def sensor(self) -> tuple[str, jax.ShapeDtypeStruct]:
        """Name and shape of what is seen."""
        return picture(self.spec.obs, "token-dyna")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid(self.sensor[1].shape, self.config.patch)

    @property
    def world(self) -> TokenWorld:
        """The transformer and its heads."""
        c, (rows, columns) = self.config, self.grid
        sizes = rows * columns, c.codes, c.frames, c.layers, c.heads, c.width, c.dropout
        return TokenWorld(self.spec.action, *sizes, c.sign_rewards, c.bins, parallel=True, dtype=c.dtype)

    @property
    def policy(self) -> FramePolicy:
        """Actor and critic."""
        c = self.config
        return FramePolicy(self.sensor[1], self.spec.action, c.policy_depth, c.policy_layers, c.units)

    @property
    def dreams(self) -> FrameDreams:
        """World model and policy with the patches between them; in reality the policy sees the frames themselves."""
        parts = self.encode, self.decode, self.world, self.policy, self.grid, self.config.context
        return FrameDreams(self.spec, self.sensor[0], *parts, decoded=False)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters, and an empty stock of codes."""
        k_model, k_policy = jax.random.split(key)
        size = self.config.patch**2 * self.sensor[1].shape[-1]
        codes = jnp.full((self.config.codes, size), FAR)
        return {"codes": codes, "model": self.world.init(k_model), "policy": self.policy.init(k_policy)}

    def patches(self, frame: Array) -> Array:
        """The patches `[R, K, P]` of frames `[R, H, W, C]`."""
        cells = to_cells(padded(as_floats(frame), self.config.patch), self.config.patch)
        return cells.reshape(len(frame), -1, cells.shape[-1])

    def encode(self, params: Any, frame: Array) -> Array:
        """Tokens `[..., K]` of frames `[..., H, W, C]`."""
        patches = self.patches(frame.reshape(-1, *frame.shape[-3:]))
        return nearest(patches, params["codes"]).reshape(*frame.shape[:-3], -1)

    def decode(self, params: Any, tokens: Array) -> Array:
        """Frames `[..., H, W, C]` of tokens `[..., K]`; a code that is not there yet is black."""
        codes = params["codes"][tokens]
        cells = jnp.where(codes < FAR, codes, 0.0).reshape(-1, *self.grid, codes.shape[-1])
        frame = cropped(from_cells(cells, self.config.patch), self.sensor[1].shape)
        painted = frame - 0.5 if kind(self.sensor[1]) == "binary" else frame
        return as_frame(painted.reshape(*tokens.shape[:-1], *frame.shape[1:]), self.sensor[1])


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build Dyna over nearest-neighbour tokens for an environment of images or 0/1 planes. `State.params` holds
    "codes" `[V, P]`, "model" and "policy". Nothing is kept in the replay. ValueError unless the observation is one
    picture."""
    nets = Networks(spec, config)
    nets.policy.features  # noqa: B018  refuses observations that do not fit
    tx = optim.adam(config.clip, 1e-8)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = nets.init(key)
        return fresh_state(params, {name: tx.init(params[name]) for name in ("model", "policy")}, hyper)

    def reset(state: State, num_envs: int) -> LSTMState:
        return nets.policy.reset(num_envs)

    def imagine(state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
        return nets.dreams.imagine(state.params, context, actions, key, horizon)

    steps = train_steps(nets, tx)
    return Agent(init, reset, partial(act, nets), steps, imagine, schedule(config), hyper_of(config))


def act(nets: Networks, state: State, carry: LSTMState, step: Step, key: Key, mode: str) -> Acted:
    """See the frame, remember, act; see `Agent.act`."""
    frame = nets.dreams.frames(step.obs)
    return nets.policy.act(state.params["policy"], carry, frame, step, key, mode, state.hyper["epsilon"])


def train_steps(nets: Networks, tx: Any) -> dict[str, TrainStep]:
    """The stock of codes, the world model, and the policy in reality and in dreams."""
    config = nets.config

    def codes(state: State, batch: Batch, key: Key) -> Updated:
        """The stock grows by what is new in the newest frames `[B, L]`."""
        frame = nets.dreams.frames(batch.record.obs)
        patches = nets.patches(frame.reshape(-1, *frame.shape[2:]))
        book = grown(state.params["codes"], patches.reshape(-1, patches.shape[-1]), config.threshold, config.grow)
        state = state._replace(params=state.params | {"codes": book}, step=state.step + 1)
        return state, {}, {"size": size_of(book).astype(jnp.float32)}

    def model(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """The transformer predicts tokens, rewards and ends in windows `[B, T + 1]`."""
        record = share.local_rows(batch.record)
        tokens = nets.encode(state.params, nets.dreams.frames(record.obs))
        objective = lambda params: model_loss(nets, params, tokens, record, key, share)  # noqa: E731
        return gradient_step(state, objective, tx, state.hyper["model_lr"], "model", share=share)

    def real(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """Actor and critic learn from the newest play `[B, L]`."""
        seen = played(nets, state.params, share.local_rows(batch.record))
        return improve(state, seen, share)

    def dream(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """Actor and critic learn in dreams from the last frames of sequences `[B, L]`."""
        record = share.local_rows(batch.record)
        return improve(state, nets.dreams.experience(state.params, record, config.imag_length, key, share), share)

    def improve(state: State, seen: Experience, share: Share) -> Updated:
        objective = lambda params: reinforce_loss(nets.policy, params, state.hyper, seen)  # noqa: E731
        return gradient_step(state, objective, tx, state.hyper["policy_lr"], "policy", share=share)

    past = max(config.burn_in, config.context - 1) + 1
    return {
        "codes": TrainStep(codes, config.envs, config.rollout, "latest"),
        "real": TrainStep(real, config.envs, config.burn_in + config.rollout + 1, "latest", shared=True),
        "model": TrainStep(model, config.model_batch, config.frames + 1, shared=True),
        "dream": TrainStep(dream, config.dream_batch, past, shared=True),
    }


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Rounds of play, of learning from it, and, each from its step on, of modelling and dreaming."""
    later = Train("model", after(config.model_from, config.model_updates))
    dream = Train("dream", after(config.dream_from, config.dream_updates))
    play = Collect(config.envs * config.rollout), Train("codes"), Train("real")
    before = Collect(config.envs * (config.burn_in + 1))  # what the first stretch of play reads besides its own rows
    return before, Repeat(FOREVER, (*play, later, dream))


# --- Presets ----------------------------------------------------------------------------------------------------------
MICRO = Config(
    patch=2, codes=128, threshold=0.5, grow=32, frames=4, layers=2, heads=4, width=64, dropout=0.0, sign_rewards=True,
    units=64, burn_in=4, imag_length=5, lam=0.9, discount=0.97, entropy=0.02, envs=8, rollout=16, model_updates=16,
    dream_updates=8, model_from=256, dream_from=2000, model_batch=16, dream_batch=32, policy_lr=1e-3, clip=10.0,
)  # fmt: skip
PRESETS: dict[str, Config] = {"large": Config(), "micro": MICRO}
"""Sizes for images on a GPU, and micro for 0/1 planes on two CPU cores."""

SYSTEM = System(
    make, Config, PRESETS, default="micro", year=2025, env="minatar/Breakout", steps=12_000,
    observations=("image", "binary"),
    summary="Dyna in a transformer over nearest-neighbour tokens (Dedieu et al. 2025)",
    paper="Dedieu et al., Improving Transformer World Models for Data-Efficient RL",
    sees="patches, each named by the nearest of a growing stock of patches; nothing is trained",
    predicts="transformer, all tokens of the next frame in one pass; reward and end heads",
    acts="CNN or MLP and LSTM, actor-critic on real play and, after a warm-up, on dreams",
)  # fmt: skip
