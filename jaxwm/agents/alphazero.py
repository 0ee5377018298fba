"""AlphaZero (Silver et al. 2018), with PUCT or with the Gumbel root of Danihelka et al. (2022).

The environment itself is the model (`spec.simulate`): a tree search with it chooses the moves of self-play, and the
network learns to say at once what the search found (policy) and how the game ended (value). One environment is one game
in which the agent moves for both sides; values are always those of the player to move, so nothing in the network or the
loss knows who that is.

B positions, L records of a sequence, A actions. Differences from the paper: the towers have RMS norm and SiLU in place
of batch norm and ReLU, so that acting and learning see the same network; learning and self-play alternate at a fixed
ratio in one program; games cut off at the end of a sequence have no value target (or, with `bootstrap`, the value that
the search gave the last position)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxwm.agents.system import System, hyper_of
from jaxwm.control import search
from jaxwm.control.policy import forced
from jaxwm.errors import Amount, Count, Natural, Positive, Several, check_number, check_types
from jaxwm.learning.pieces import merge
from jaxwm.learning.share import ALONE, Share
from jaxwm.learning.step import Losses, State, Updated, fresh_state, gradient_step
from jaxwm.nets.layers import MLP, Linear, apply
from jaxwm.nets.residual import Cut, Tower
from jaxwm.schedule import FOREVER, Collect, Repeat, Train, pace
from jaxwm.spaces import random_action
from jaxwm.types import Acted, Agent, Array, Batch, Discrete, Key, Record, Spec, Step, TrainStep, Varies


@dataclass(frozen=True)
class Config:
    """Settings of AlphaZero; defaults are those published for chess."""

    search: Literal["puct", "gumbel"] = "puct"  # Kind of tree search.
    simulations: int = 800  # Simulations of each search of self-play.
    match_simulations: int = 800  # Simulations of each search in the greedy mode.
    considered: int = 16  # Actions that a Gumbel root draws.
    dirichlet: float = 0.3  # Concentration of the noise at a PUCT root: 0.3 for chess, 0.03 for Go.
    noise: float = 0.25  # Share of that noise in the prior.
    sampling_moves: Natural = 30
    """First moves of a game of self-play that are drawn at temperature 1; later ones are the best of the search."""
    random_moves: Natural = 0
    """Games of self-play begin with up to so many moves at random, each number equally likely: a player that has become
    good meets few positions on its own. Their values are not learned (KataGo does the like: Wu 2019)."""
    blocks: Natural = 20  # Residual blocks of two 3 x 3 convolutions.
    channels: Count = 256  # Channels of the convolutions.
    head: Count = 32  # Channels of the 1 x 1 convolution before each head.
    units: Count = 256  # Units of the hidden layer of the value head.
    batch_size: Count = 64  # Sequences of a batch.
    batch_length: Several = 64  # Records of a sequence; with the batch size, 4,096 positions.
    train_ratio: Positive = 0.7
    """Positions learned from for each position played: about 700,000 batches for 44 million games."""
    optimizer: Literal["sgd", "adam"] = "sgd"  # SGD has momentum 0.9.
    lr: Varies[Positive] = 0.2
    """Learning rate; a tenth of it after 100,000 updates, and again after 300,000 and 500,000."""
    l2: Varies[Amount] = 1e-4  # Weight of the squared norm of the parameters.
    bootstrap: bool = False  # Learn from the value of the search where a sequence ends before its game.
    envs: Count = 5000  # Games played at once.
    capacity: int = 10_000_000  # Replay size in positions (published: the last million games).

    def __post_init__(self):
        check_types(self)
        check_number("capacity", self.capacity, least=self.batch_length * self.envs, whole=True)
        for mode in ("explore", "greedy"):
            search.check(self.tree(mode))

    def tree(self, mode: str = "explore") -> search.Settings:
        """The settings of the search; results of games are in [-1, 1]."""
        numbers = self.match_simulations if mode == "greedy" else self.simulations, self.considered
        noise = dict(dirichlet=self.dirichlet, noise=self.noise)
        return search.Settings(self.search, *numbers, **noise, bounds=(-1.0, 1.0))


# --- The loss ---------------------------------------------------------------------------------------------------------
def loss(net: Net, params: Any, record: Record, l2: Array, share: Share = ALONE) -> Losses:
    """(z - v)^2 - pi log p + l2 |params|^2 (equation 1) over the positions of `[B, L]` in which a move was made."""
    chex.assert_equal_shape_prefix((record.reward, record.extras["policy"], record.obs["legal"]), 2)
    result, known = results(record, net.config.bootstrap)
    used = ~record.is_last[:, :-1]
    known &= ~record.extras["random"][:, :-1]
    now = merge(jax.tree.map(lambda x: x[:, :-1], (record.obs, record.extras["policy"])))
    (seen, target), shape = now, used.shape
    logits, value = apply(net, params, seen["board"])
    log_p = jax.nn.log_softmax(search.mask(logits, seen["legal"]))
    cross = -jnp.where(seen["legal"], target * log_p, 0.0).sum(-1).reshape(shape)
    error = jnp.square(result - value.reshape(shape))
    mean = share.weighted_mean
    parts = {"loss/policy": mean(cross, used), "loss/value": mean(error, used & known)}
    entropy = -jnp.where(seen["legal"], jnp.exp(log_p) * log_p, 0.0).sum(-1).reshape(shape)
    total = sum(parts.values()) + l2 * optax.tree.norm(params, squared=True)
    about = {"loss": total, "entropy": mean(entropy, used), "known": mean(known, used)}
    return total, ({}, parts | about)


def results(record: Record, bootstrap: bool) -> tuple[Array, Array]:
    """How games `[B, L]` ended for the players to move, `[B, L - 1]`, and where that is known.
    The reward of a record is that of the player who moved in the record before. Where the sequence ends first, or a
    time limit ends the game, the value of the search stands in; with `bootstrap` the former counts as known too."""
    to_play = record.obs["to_play"]
    chex.assert_equal_shape((to_play, record.reward, record.extras["value"]))
    sign = jnp.where(to_play[:, 1:] == to_play[:, :-1], 1.0, -1.0)

    def back(carry: tuple[Array, Array], x: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        reward, sign, value, first, last, terminal = x
        later, known = carry
        later = jnp.where(last, jnp.where(terminal, 0.0, value), later)
        out = reward + sign * later, (last | known) & ~first
        return out, out

    after = (record.reward, record.extras["value"], record.is_first, record.is_last, record.is_terminal)
    reward, value, first, last, terminal = (x[:, 1:].swapaxes(0, 1) for x in after)
    start, steps = (value[-1], jnp.full(len(to_play), bootstrap)), (reward, sign.T, value, first, last, terminal)
    _, (result, known) = jax.lax.scan(back, start, steps, reverse=True)
    return result.swapaxes(0, 1), known.swapaxes(0, 1)


# --- The search -------------------------------------------------------------------------------------------------------
def perfect_model(simulate: Callable[[Any, Array], Step], evaluate: Callable[[Any, Array], Any]) -> search.Model:
    """The environment as the model of a search, and the network's evaluation of where it leads.
    `evaluate(params, board) -> (logits, value)`. An embedding is the environment's state and who is to move."""

    def model(params: Any, key: Key, action: Array, place: tuple[Any, Array]) -> tuple[Any, tuple[Any, Array]]:
        sim, mover = place
        step = simulate(sim, action)
        logits, value = evaluate(params, step.obs["board"])
        after, over = step.obs["to_play"], step.is_last
        discount = jnp.where(over, 0.0, jnp.where(after == mover, 1.0, -1.0))
        logits, value = search.mask(logits, step.obs["legal"]), jnp.where(over, 0.0, value)
        node = search.Node(reward=step.reward, discount=discount, prior_logits=logits, value=value)
        return node, (step.obs["sim"], after)

    return model


# --- Wiring -----------------------------------------------------------------------------------------------------------
class GameCarry(NamedTuple):
    """What is known of games `[N]`: `moves` made so far, and how many of them are the `opening` at random."""

    moves: Array
    opening: Array


class Net(nn.Module):
    """`board [B, H, W, C] -> logits [B, A], value [B]` in [-1, 1]: a residual tower and two heads."""

    actions: int
    config: Config

    @nn.compact
    def __call__(self, board: Array) -> tuple[Array, Array]:
        c = self.config
        x = Tower(c.channels, c.blocks, name="tower")(board.astype(jnp.float32))
        policy, value = (Cut(c.head, name=name)(x) for name in ("policy", "value"))
        logits = Linear(policy.shape[-1], self.actions, outscale=0.1, name="logits")(policy)
        value = Linear(c.units, 1, outscale=0.1, name="result")(MLP(1, c.units, name="hidden")(value))
        return logits, jnp.tanh(value[..., 0])


def make(spec: Spec, config: Config = Config()) -> Agent:
    """Build AlphaZero for an environment that can be simulated. ValueError for any other."""
    simulate, obs, space = spec.simulate, spec.obs, spec.action
    if simulate is None or not isinstance(space, Discrete) or len(obs["board"].shape) != 3:
        raise ValueError(
            f"alphazero searches in the environment itself, and {spec.name} cannot be simulated: take one of the suite "
            "pgx (`jaxwm list`), or give the Spec a `simulate`, discrete actions and the observations board, legal, "
            "to_play and sim"
        )
    net = Net(space.n, config)
    tx = optax.trace(0.9) if config.optimizer == "sgd" else optax.scale_by_adam()
    evaluate_board = lambda params, board: apply(net, params, board)  # noqa: E731
    model = perfect_model(simulate, evaluate_board)

    def init(key: Key, hyper: Mapping[str, Any]) -> State:
        params = net.init(key, jnp.zeros((1, *obs["board"].shape), obs["board"].dtype))
        return fresh_state(params, tx.init(params), hyper)

    def act(state: State, carry: GameCarry, step: Step, key: Key, mode: str) -> Acted:
        legal, k_move, k_opening = step.obs["legal"], jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
        at_will = forced(space, step, k_move, mode)
        drawn = jax.random.randint(k_opening, carry.opening.shape, 0, config.random_moves + 1)
        moves, opening = (jnp.where(step.is_first, new, old) for new, old in zip((0, drawn), carry, strict=True))
        carry, at_random = GameCarry(moves + 1, opening), (moves < opening) & (mode == "explore")
        if at_will is not None:
            policy = legal / legal.sum(-1, keepdims=True)
            return carry, at_will, {"policy": policy, "value": jnp.zeros(len(legal)), "random": at_random}
        logits, value = evaluate_board(state.params, step.obs["board"])
        root = search.Root(logits, value, (step.obs["sim"], step.obs["to_play"]), legal)
        temperature = 0.0 if mode == "greedy" else (moves < config.sampling_moves).astype(jnp.float32)
        found = search.search(config.tree(mode), state.params, root, model, key, temperature)
        action = jnp.where(at_random, random_action(space, k_move, len(legal), legal), found.action)
        return carry, action, {"policy": found.policy, "value": found.value, "random": at_random}

    def update(state: State, batch: Batch, key: Key, share: Share = ALONE) -> Updated:
        record = share.local_rows(batch.record)
        rate = state.hyper["lr"] * 0.1 ** sum(state.step >= drop for drop in (100_000, 300_000, 500_000))
        objective = lambda params: loss(net, params, record, state.hyper["l2"], share)  # noqa: E731
        return gradient_step(state, objective, tx, rate, share=share)

    none = lambda num_envs: jnp.zeros(num_envs, jnp.int32)  # noqa: E731
    reset = lambda state, num_envs: GameCarry(none(num_envs), none(num_envs))  # noqa: E731
    steps = {"all": TrainStep(update, config.batch_size, config.batch_length, shared=True)}
    return Agent(init, reset, act, steps, None, schedule(config), hyper_of(config))


def schedule(config: Config) -> tuple[Collect | Repeat, ...]:
    """Self-play and learning in turn, so that each position is learned from `train_ratio` times."""
    per_update = config.batch_size * config.batch_length / config.train_ratio  # positions
    steps, updates = pace(per_update, config.envs)
    body = (Collect(steps), Train("all", updates))
    return Collect(config.batch_length * config.envs), Repeat(FOREVER, body)


# --- Presets ----------------------------------------------------------------------------------------------------------
_SMALL: Any = dict(search="gumbel", optimizer="adam", l2=1e-5, head=16, units=64, bootstrap=True)

PRESETS = {
    "alphazero": Config(),
    "gumbel": Config(
        search="gumbel", simulations=32, match_simulations=32, blocks=6, channels=128, train_ratio=1.0,
        optimizer="adam", lr=1e-3, envs=1024,
    ),
    "tictactoe": Config(
        **_SMALL, simulations=32, match_simulations=50, considered=9, sampling_moves=9, random_moves=4, blocks=1,
        channels=32, batch_size=32, batch_length=16, train_ratio=12.0, lr=3e-3, envs=32, capacity=20_000,
    ),
    "connect-four": Config(
        **_SMALL, simulations=16, match_simulations=64, considered=7, sampling_moves=42, random_moves=8, blocks=2,
        channels=32, batch_size=8, batch_length=32, train_ratio=4.0, lr=2e-3, envs=64, capacity=100_000,
    ),
}  # fmt: skip

SYSTEM = System(
    make, Config, PRESETS, default="tictactoe", year=2017, env="pgx/TicTacToe", steps=40_000, observations=("board",),
    actions=("Discrete",), players=2, obeys=("legal", "to_play", "sim"),
    summary="tree search in the environment itself, learned from self-play (Silver et al. 2018)",
    paper="Silver et al., A General Reinforcement Learning Algorithm That Masters Chess, Shogi and Go",
    sees="the board",
    predicts="nothing: the rules are given, the environment itself is the model",
    acts="tree search (PUCT or Gumbel) with a network's policy and value at the leaves",
)  # fmt: skip
