"""Genie: generative interactive environments (Bruce et al. 2024). A world that one can act in, from video only.

Sees frames as tokens of a spatio-temporal autoencoder. A second one names what happened between two frames with one of
few codes, the latent actions, because its decoder has nothing else to tell the next frame by. Predicts with a MaskGIT
over space and time: the tokens of the next frame from those before and the codes. Nothing acts, and there is no reward.

Letters: B batch, T frames of a window, K tokens of a frame, V codes, A latent actions, N buttons of a game, H frames of
a dream, S steps in which a frame is filled in. The action of a frame is the one that led to it.

Where recordings hold the actions of a game, nothing learns from them but a table: how often each button met each code,
in `labels` steps of the last batch. With it `imagine` takes the game's own actions. With `actions` "true" there are no
latent ones, and the dynamics learn from the buttons.

What differs from the paper, or the paper leaves open:

- 0/1 planes are reconstructed with cross-entropy in which cells that are on weigh more; images with squared error;
- codes are compared by angle, and codes that were idle for `revive` updates restart as latents of the batch (in latent
  actions so does Jafar, Willi et al. 2024);
- the action is a token before those of its frame (Jasmine, Mahajan et al. 2025), or is added to them, as published;
- the masked share is drawn per window, not per batch, or per frame (`mask_per`), which is nearer to how dreams see the
  past: without a mask;
- tokens are drawn at a temperature that falls with the masked share, and the likeliest draws stay;
- frames have rotary positions, so that a dream slides on beyond the window; encoder and decoder have equal sizes;
- Adam has a second moment of 0.999, not 0.9, and the learning rate has no decay after its warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from jaxwm import spaces
from jaxwm.agents.system import System, hyper_of
from jaxwm.errors import Amount, Count, Fraction, Natural, Positive, Several, check_number, check_types
from jaxwm.learning import optim
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, Updated, gradient_step
from jaxwm.learning.step import Remembering as State
from jaxwm.models import masked_tokens
from jaxwm.models.frame_scores import frame_error, information, mean_where, psnr, table
from jaxwm.models.masked_tokens import Inject, MaskedTokens, led_to, masked
from jaxwm.models.video import LatentActions, VideoTokenizer
from jaxwm.nets.layers import apply
from jaxwm.nets.quantiser import Quantised, as_frame, kept_alive, picture, reconstruction_error, unit, used
from jaxwm.nets.sensors import sensors
from jaxwm.schedule import FOREVER, Load, Repeat, Train
from jaxwm.types import (
    Agent,
    Array,
    Batch,
    Discrete,
    Dream,
    Key,
    Metrics,
    Record,
    Spec,
    TrainStep,
    Varies,
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of Genie. Defaults are those of Jasmine for CoinRun at 64 x 64."""

    frames: int = 16  # Frames of a window, and the most that is remembered.
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the transformers; parameters, norms and losses stay float32. Use bfloat16 on GPUs."""
    remat: bool = False  # Compute blocks again for the gradient instead of keeping what is inside of them.
    on_weight: Positive = 10.0  # Weight of cells that are on, in the loss of 0/1 planes.
    commitment: Amount = 0.25  # Weight of the loss that ties encoders to their codes.
    # Tokens.
    codes: Several = 1024  # Codes of the vocabulary.
    code_width: Count = 32  # Numbers of a code.
    patch: Count = 16  # Pixels of the sides of the square that a token stands for.
    tokenizer_layers: Count = 4  # Layers of its encoder, and of its decoder.
    tokenizer_heads: Count = 8  # Their heads.
    tokenizer_width: Count = 512  # Their width; hidden layers are four times as wide.
    revive: Natural = 0  # Updates without use after which a code restarts as a latent of the batch; 0: never.
    # Latent actions.
    actions: Literal["latent", "true"] = "latent"  # What the dynamics learn from: codes, or the game's own actions.
    action_codes: Count = 6  # Codes of actions.
    action_width: Count = 32  # Numbers of such a code.
    action_patch: Count = 16  # Pixels of the sides of the squares that are compared.
    action_layers: Count = 4  # Layers of encoder and decoder.
    action_heads: Count = 8  # Their heads.
    action_dim: Count = 512  # Their width.
    action_revive: Natural = 50  # As `revive`, of the codes of actions.
    labels: Count = 100  # Labelled steps that tell which button a code stands for.
    # Dynamics.
    layers: Count = 6  # Layers of the dynamics.
    heads: Count = 8  # Their heads.
    width: Count = 512  # Their width.
    inject: Inject = "prepend"  # How an action enters: as a token of its own, or added to the tokens.
    mask_least: Fraction = 0.5  # Least share of tokens that is masked; the shares are uniform up to 1.
    mask_per: Literal["window", "frame"] = "window"  # What one share is drawn for.
    sampling_steps: Count = 25  # Steps in which a frame is filled in, S.
    temperature: Amount = 1.0  # Temperature of the first of them.
    # Order.
    order: Literal["staged", "joint"] = "joint"
    """After the tokens: latent actions, then dynamics; or both side by side, as published."""
    tokenizer_updates: Natural = 300_000  # Updates of the tokens, before all else; 0: side by side with the others.
    action_updates: Natural = 200_000  # Updates of the latent actions before the dynamics begin, where staged.
    envs: Count = 16  # Streams of recordings side by side.
    capacity: Count = 500_000  # Frames that are held; what is larger streams through.
    # Optimisers.
    tokenizer_batch: Count = 48  # Windows of an update.
    action_batch: Count = 36  # The same of the latent actions.
    batch_size: Count = 36  # The same of the dynamics.
    tokenizer_lr: Varies[Positive] = 3e-4  # Learning rate of the tokens.
    action_lr: Varies[Positive] = 3e-5  # Learning rate of the latent actions.
    lr: Varies[Positive] = 3e-5  # Learning rate of the dynamics.
    warmup: Natural = 5000  # Updates over which learning rates rise.
    weight_decay: Amount = 1e-4  # Of matrices, in units of the learning rate.
    clip: Positive = 10.0  # Largest norm of a part's gradient.

    def __post_init__(self):
        check_types(self)
        check_number("frames", self.frames, least=3, whole=True)

    @property
    def judged(self) -> int:
        """Frames of a window that are dreamed for scores: the last four, at most half of them."""
        return min(4, self.frames // 2)


# --- Losses -----------------------------------------------------------------------------------------------------------
def tokenizer_loss(nets: Networks, params: Any, frame: Array, first: Array, share: Share = ALONE) -> Losses:
    """Reconstruction, codebook and commitment (van den Oord et al., eq. 3) of frames `[B, T, H, W, C]`, and metrics."""
    del share  # every entry counts the same
    chex.assert_equal_shape_prefix((frame, first), 2)
    found, painted = apply(nets.tokenizer, params, frame, first)
    return vq_loss(nets.config, nets.error(painted, frame).mean(), found)


def action_loss(nets: Networks, params: Any, frame: Array, first: Array, share: Share = ALONE) -> Losses:
    """The same for frames 1 to T - 1 told by codes; a frame that begins an episode does not count."""
    chex.assert_equal_shape_prefix((frame, first), 2)
    found, painted = apply(nets.actor, params, frame, first)
    error = nets.error(painted, frame[:, 1:]).mean((2, 3, 4))
    return vq_loss(nets.config, share.weighted_mean(error, ~first[:, 1:]), found)


def vq_loss(config: Config, error: Array, found: Quantised) -> Losses:
    """An autoencoder's three terms; its tokens and latents; metrics."""
    total = error + found.codebook_loss + config.commitment * found.commitment_loss
    parts = {"reconstruction": error, "codebook": found.codebook_loss, "commitment": found.commitment_loss}
    return total, ((found.tokens, found.latents), {"loss": total} | {f"loss/{k}": v for k, v in parts.items()})


def dynamics_loss(
    nets: Networks, params: Any, tokens: Array, action: Array, first: Array, key: Key, share: Share = ALONE
) -> Losses:
    """Cross-entropy of masked tokens (Chang et al. 2022, eq. 1), `tokens [B, T, K]`, `action [B, T]`; and metrics."""
    chex.assert_equal_shape_prefix((tokens, action, first), 2)
    config, uniform = nets.config, share.uniform(key, (*first.shape, tokens.shape[-1] + 1))
    rate = config.mask_least + (1 - config.mask_least) * uniform[..., 0]
    rate = rate if config.mask_per == "frame" else jnp.broadcast_to(rate[:, :1], rate.shape)
    hidden = masked(uniform[..., 1:], rate, first)
    guess = apply(nets.dynamics, params, jnp.where(hidden, config.codes, tokens), action, first)
    loss = share.weighted_mean(-guess.log_prob(tokens), hidden)
    right = share.weighted_mean((guess.mode() == tokens).astype(jnp.float32), hidden)
    return loss, ({}, {"loss": loss, "accuracy/masked": right})


# --- Parts ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Networks:
    """The three parts over explicit parameters, for one kind of recordings."""

    spec: Spec
    config: Config

    @property
    def sensor(self) -> tuple[str, jax.ShapeDtypeStruct]:
        """Name and shape of what is seen."""
        return picture(self.spec.obs, "genie")

    @property
    def buttons(self) -> int:
        """Actions of the game, N; 0 where the recordings hold none."""
        return self.spec.action.n if isinstance(self.spec.action, Discrete) else 0

    @property
    def latent(self) -> bool:
        """Whether actions are codes, and not the game's own."""
        return self.config.actions == "latent"

    @property
    def codes(self) -> int:
        """What the dynamics tell apart: codes A, or buttons."""
        return self.config.action_codes if self.latent else self.buttons

    @property
    def tokenizer(self) -> VideoTokenizer:
        """Frames to tokens and back."""
        c = self.config
        sizes = c.codes, c.code_width, c.patch, c.tokenizer_layers, c.tokenizer_heads, c.tokenizer_width, c.frames
        return VideoTokenizer(self.sensor[1].shape, *sizes, c.dtype, c.remat)

    @property
    def actor(self) -> LatentActions:
        """Frames to latent actions."""
        c = self.config
        sizes = c.action_codes, c.action_width, c.action_patch, c.action_layers, c.action_heads, c.action_dim, c.frames
        return LatentActions(self.sensor[1].shape, *sizes, c.dtype, c.remat)

    @property
    def dynamics(self) -> MaskedTokens:
        """Tokens and actions to the next tokens."""
        c = self.config
        sizes = self.tokenizer.tokens, c.codes, self.codes, c.layers, c.heads, c.width, c.frames
        return MaskedTokens(*sizes, c.inject, c.dtype, c.remat)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters of the parts, and the empty table of labels `[N, A]`, where there are both."""
        k_tokenizer, k_actions, k_dynamics = jax.random.split(key, 3)
        frame, first = jnp.zeros((1, 2, *self.sensor[1].shape), self.sensor[1].dtype), jnp.zeros((1, 2), bool)
        tokens, action = jnp.zeros((1, 2, self.tokenizer.tokens), jnp.int32), jnp.zeros((1, 2), jnp.int32)
        params = {"tokenizer": self.tokenizer.init(k_tokenizer, frame, first)}
        if self.latent:
            params["actions"] = self.actor.init(k_actions, frame, first)
        params["dynamics"] = self.dynamics.init(k_dynamics, tokens, action, first)
        return params | ({"labels": jnp.zeros((self.buttons, self.codes))} if self.latent and self.buttons else {})

    def frames(self, record: Record) -> Array:
        """The pictures `[B, T, H, W, C]` of records."""
        return sensors(record.obs)[self.sensor[0]]

    def error(self, painted: Array, frame: Array) -> Array:
        """The error of each entry."""
        return reconstruction_error(painted, frame, self.config.on_weight, squared=True)

    def encode(self, params: Any, frame: Array, first: Array) -> Array:
        """Tokens `[B, T, K]` of frames `[B, T, H, W, C]`."""
        return apply(self.tokenizer, params["tokenizer"], frame, first, method="quantise").tokens

    def decode(self, params: Any, tokens: Array, first: Array) -> Array:
        """Frames `[B, T, H, W, C]` of tokens `[B, T, K]`, as an environment shows them."""
        return as_frame(apply(self.tokenizer, params["tokenizer"], tokens, first, method="decode"), self.sensor[1])

    def acted(self, params: Any, record: Record) -> Array:
        """What led to frames 1 to T - 1 of records, `[B, T - 1]`: inferred, or as recorded."""
        if not self.latent:
            return record.action[:, :-1]
        if record.reward.shape[1] < 2:
            return jnp.zeros((len(record.reward), 0), jnp.int32)
        return apply(self.actor, params["actions"], self.frames(record), record.is_first, method="quantise").tokens

    def pressed(self, params: Any, buttons: Array) -> Array:
        """The codes of buttons `[...]`: the one that each met most often, or, never seen, the commonest of all."""
        if not (self.latent and self.buttons):
            return buttons
        counts = params["labels"]
        return (counts + 1e-3 * counts.sum(0)).argmax(1).astype(jnp.int32)[buttons]

    def meant(self, params: Any, codes: Array) -> Array:
        """The likeliest buttons of codes `[...]`, by the table."""
        return params["labels"].argmax(0).astype(jnp.int32)[codes]

    def dream(self, params: Any, record: Record, codes: Array, key: Key) -> tuple[Array, Array]:
        """Tokens `[B, H, K]` and frames `[B, H, ...]` that codes `[B, H]` lead to, after records `[B, T]`."""
        c, first, (batch, horizon) = self.config, record.is_first, codes.shape
        tokens = self.encode(params, self.frames(record), first)
        past = tokens, led_to(self.acted(params, record), first, self.codes), first
        noise = jax.random.uniform(key, (horizon, c.sampling_steps, batch, tokens.shape[-1]))
        found = masked_tokens.dream(self.dynamics, params["dynamics"], past, codes, noise, c.temperature)
        whole = jnp.concatenate([tokens, found], 1)
        later = jnp.concatenate([first, jnp.zeros((batch, horizon), bool)], 1)
        return found, self.decode(params, whole, later)[:, -horizon:]


# --- Wiring -----------------------------------------------------------------------------------------------------------
def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build Genie for recordings of images or 0/1 planes. `State.params` holds "tokenizer", "actions", "dynamics" and
    "labels", `State.memory` for how many updates each code was idle, by part.
    ValueError unless the observation is one picture, and actions are choices, or none."""
    nets = Networks(spec, config)
    nets.sensor  # noqa: B018  refuses observations that do not fit
    if spec.action is not None and not nets.buttons:
        raise ValueError(f"genie knows buttons, one choice at a time; {spec.name} takes {spec.action}")
    if not nets.latent and not nets.buttons:
        raise ValueError(f"--actions true learns from recorded actions, and {spec.name} holds none: take latent")
    tx = optim.decayed(optim.packed(optim.adam(config.clip, 1e-8)), config.weight_decay)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = nets.init(key)
        opt = {name: tx.init(part) for name, part in params.items() if name != "labels"}
        sizes = {"tokenizer": config.codes} | ({"actions": config.action_codes} if nets.latent else {})
        idle = {name: jnp.zeros(size, jnp.int32) for name, size in sizes.items()}
        return State(params, opt, optim.numbers(hyper), jnp.zeros((), jnp.int32), idle)

    steps = train_steps(nets, tx)
    dreams = partial(imagine, nets)
    return Agent(init, None, None, steps, dreams, schedule(config), hyper_of(config), partial(scores, nets))


def imagine(nets: Networks, state: State, context: Record, actions: Array | None, key: Key, horizon: int) -> Dream:
    """See `Agent.imagine`; actions are the game's own, or, where the recordings hold none, codes. None draws them."""
    space = nets.spec.action or Discrete(nets.codes)
    spaces.check_dream(space, context, actions, horizon)
    batch, (k_action, k_token) = len(context.reward), jax.random.split(key)
    if actions is None:
        actions = spaces.random_action(space, k_action, batch * horizon).reshape(batch, horizon)
    tokens, frame = nets.dream(state.params, context, nets.pressed(state.params, actions), k_token)
    obs = {nets.sensor[0]: frame} if isinstance(nets.spec.obs, Mapping) else frame
    latent = {"tokens": tokens.reshape(batch, horizon, *nets.tokenizer.grid)}
    return Dream(obs, jnp.zeros((batch, horizon)), jnp.ones((batch, horizon)), actions, latent)


def train_steps(nets: Networks, tx: optax.GradientTransformation) -> dict[str, TrainStep]:
    """The three parts."""
    config = nets.config

    def rate(state: State, part: str, name: str) -> Array:
        count = optax.tree.get(state.opt[part], "count")
        return state.hyper[name] * optim.warmup(count + 1, config.warmup)

    def autoencoder(name: str, loss: Any, lr: str, idle: int) -> Any:
        def update(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
            record = share.local_rows(batch.record)
            objective = lambda params: loss(nets, params, nets.frames(record), record.is_first, share)  # noqa: E731
            step = gradient_step(state, objective, tx, rate(state, name, lr), name, share=share)
            state, (tokens, latents), metrics = step
            state, more = keep_codes(state, name, tokens, latents, idle, key, share)
            return state, {}, metrics | more

        return update

    def dynamics(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        """The transformer fills in tokens of windows `[B, T]`; the table of labels is made anew."""
        record = share.local_rows(batch.record)
        tokens = nets.encode(state.params, nets.frames(record), record.is_first)
        codes = nets.acted(state.params, record)
        action = led_to(codes, record.is_first, nets.codes)
        objective = lambda p: dynamics_loss(nets, p, tokens, action, record.is_first, key, share)  # noqa: E731
        state, _, metrics = gradient_step(state, objective, tx, rate(state, "dynamics", "lr"), "dynamics", share=share)
        if "labels" in state.params:
            labels = labelled(nets, *(share.gather(x) for x in (record.action, codes, record.is_first)))
            state = state._replace(params=state.params | {"labels": labels})
        return state, {}, metrics

    tokenizer = autoencoder("tokenizer", tokenizer_loss, "tokenizer_lr", config.revive)
    steps = {"tokenizer": TrainStep(tokenizer, config.tokenizer_batch, config.frames, shared=True)}
    if nets.latent:
        actions = autoencoder("actions", action_loss, "action_lr", config.action_revive)
        steps["actions"] = TrainStep(actions, config.action_batch, config.frames, shared=True)
    return steps | {"dynamics": TrainStep(dynamics, config.batch_size, config.frames, shared=True)}


def keep_codes(
    state: State, name: str, tokens: Array, latents: Array, limit: int, key: Key, share: Share
) -> tuple[State, Metrics]:
    """Count for how long each code of a part was idle, restart those that were for too long."""
    part, idle = state.params[name], state.memory
    inner = part["params"]
    book = unit(inner["codebook"])
    book, idle_now, metrics = kept_alive(book, idle[name], tokens, latents, limit, key, share)
    params = state.params | {name: part | {"params": inner | {"codebook": book}}}
    return state._replace(params=params, memory=idle | {name: idle_now}), metrics


def labelled(nets: Networks, action: Array, codes: Array, first: Array) -> Array:
    """How often each button met each code, `[N, A]`, in the first `labels` steps inside episodes; `action [B, T]` after
    frames, `codes [B, T - 1]` between them."""
    inside = ~first[:, 1:].ravel()
    counted = inside & (jnp.cumsum(inside) <= nets.config.labels)
    return table(action[:, :-1].ravel(), codes.ravel(), counted, (nets.buttons, nets.codes))


def schedule(config: Config) -> tuple[Load | Repeat, ...]:
    """Tokens, then latent actions and dynamics, side by side or one after the other, while recordings stream in."""
    latent, joint = config.actions == "latent", config.order == "joint"
    stage = lambda times, *names: Repeat(times, (Load(1), *map(Train, names)))  # noqa: E731
    words: list[Load | Repeat] = [Load(2 * config.frames)]
    if config.tokenizer_updates:
        words.append(stage(config.tokenizer_updates, "tokenizer"))
    if latent and not joint and config.action_updates:
        words.append(stage(config.action_updates, "actions"))
    last = [] if config.tokenizer_updates else ["tokenizer"]
    last += ["actions"] if latent and (joint or not config.action_updates) else []
    return *words, stage(FOREVER, *last, "dynamics")


# --- Scores -----------------------------------------------------------------------------------------------------------
def scores(nets: Networks, state: State, batch: Batch, key: Key) -> Metrics:
    """What dreams of the last frames of windows are worth, under the codes of what really happened.

    "psnr" in dB; "delta psnr" against random codes (Bruce et al., section 3), those of another window and one code for
    all; "skill", 1 - error / error of the last frame kept; the share of tokens, sampled frame by frame, that are right;
    shares of codes in use. Where there are labels, too: "information" of a code about the button, as a share of its
    entropy, and "button accuracy", how often the table names the button that was pressed."""
    params, record, h = state.params, batch.record, nets.config.judged
    context, later = (jax.tree.map(lambda x, cut=cut: x[:, cut], record) for cut in (slice(-h), slice(-h, None)))
    k_code, k_dream = jax.random.split(key)
    codes = nets.acted(params, record)
    plans = rival_codes(nets, codes[:, -h:], k_code)
    if "labels" in params:
        plans["buttons"] = nets.pressed(params, record.action[:, -h - 1 : -1])
    run = lambda plan: nets.dream(params, context, plan, k_dream)  # noqa: E731
    tokens, frames = jax.lax.map(run, jnp.stack(list(plans.values())))
    real, valid = nets.frames(later), jnp.cumprod(~later.is_first, 1)
    error = {name: frame_error(x, real) for name, x in zip(plans, frames, strict=True)}
    clear = {name: mean_where(psnr(x), valid) for name, x in error.items()}
    kept = frame_error(jnp.repeat(nets.frames(context)[:, -1:], h, 1), real)
    target = nets.encode(params, nets.frames(record), record.is_first)
    shown = nets.decode(params, target, record.is_first)
    right, before = tokens[0] == target[:, -h:], target[:, -h - 1, None]
    moved = valid[..., None] * (target[:, -h:] != before)
    found = {
        "psnr": clear["own"], "psnr/tokenizer": psnr(frame_error(shown, nets.frames(record))).mean(),
        "delta psnr": clear["own"] - clear["random"], "delta psnr/permuted": clear["own"] - clear["permuted"],
        "delta psnr/single": clear["own"] - clear["single"],
        "skill": 1 - (error["own"] * valid).sum() / jnp.maximum((kept * valid).sum(), 1e-9),
        "token accuracy": mean_where(right, jnp.broadcast_to(valid[..., None], right.shape)),
        "token accuracy/changed": mean_where(right, moved),
        "tokens used": used(target, nets.config.codes).mean(), "actions used": used(codes, nets.codes).mean(),
    }  # fmt: skip
    if "labels" in params:
        found |= {"psnr/buttons": clear["buttons"]} | button_scores(nets, params, record, codes)
    return found


def rival_codes(nets: Networks, codes: Array, key: Key) -> dict[str, Array]:
    """The codes `[B, H]` of what happened, and others that a model which obeys must not do as well with."""
    commonest = jnp.bincount(codes.ravel(), length=nets.codes).argmax()
    random = jax.random.randint(key, codes.shape, 0, nets.codes)
    single = jnp.full_like(codes, commonest)
    return {"own": codes, "random": random, "permuted": jnp.roll(codes, 1, 0), "single": single}


def button_scores(nets: Networks, params: Any, record: Record, codes: Array) -> Metrics:
    """What codes `[B, T - 1]` tell of the buttons that were pressed."""
    inside, pressed = ~record.is_first[:, 1:], record.action[:, :-1]
    counts = table(pressed.ravel(), codes.ravel(), inside.ravel(), (nets.buttons, nets.codes))
    named = mean_where(nets.meant(params, codes) == pressed, inside)
    return {"information": information(counts), "button accuracy": named}


# --- Presets ----------------------------------------------------------------------------------------------------------
MICRO = Config(
    frames=8, codes=64, code_width=8, patch=4, tokenizer_layers=1, tokenizer_heads=4, tokenizer_width=64, revive=100,
    action_codes=8, action_width=8, action_patch=4, action_layers=2, action_heads=4, action_dim=64,
    layers=2, heads=4, width=64, mask_per="frame", mask_least=0.0, sampling_steps=4, temperature=0.5,
    order="staged", tokenizer_updates=1500, action_updates=3000, envs=4, capacity=100_000, warmup=100,
    tokenizer_batch=16, action_batch=16, batch_size=16, tokenizer_lr=1e-3, action_lr=1e-3, lr=1e-3,
)  # fmt: skip
NANO = replace(
    MICRO, codes=32, tokenizer_width=32, action_dim=32, width=32, action_codes=6, tokenizer_updates=1000,
    action_updates=3000, sampling_steps=3,
)  # fmt: skip
JAFAR = Config(
    patch=4, tokenizer_layers=8, action_layers=8, layers=12, inject="add", order="staged", batch_size=36,
)  # fmt: skip
GENIE = Config(
    patch=4, tokenizer_layers=20, tokenizer_heads=16, tokenizer_width=1024, action_codes=8, action_layers=20,
    action_heads=16, action_dim=1024, layers=48, heads=40, width=5120, inject="add", temperature=2.0,
    dtype="bfloat16", remat=True,
)  # fmt: skip
PRESETS: dict[str, Config] = {"jasmine": Config(), "jafar": JAFAR, "genie": GENIE, "micro": MICRO, "nano": NANO}
"""Published sizes for CoinRun (Jasmine, Jafar) and for the paper's 10.7 billion parameters at 160 x 90, and small ones
for two CPU cores: micro for frames of games in cells or pixels, nano for a moving square."""

SYSTEM = System(
    make, Config, PRESETS, default="micro", year=2024, env="minatar/Breakout", steps=8000, video=True,
    observations=("image", "binary"), actions=("Discrete",),
    summary="playable worlds from video: latent actions, MaskGIT over space and time (Bruce et al. 2024)",
    paper="Bruce et al., Genie: Generative Interactive Environments",
    sees="spatio-temporal autoencoder: a frame is a grid of tokens; what happened is one of few codes",
    predicts="MaskGIT over space and time: the next frame's tokens, from the past and a code or button",
    acts="nothing acts; a table of labelled steps maps the game's own actions to codes",
)  # fmt: skip
