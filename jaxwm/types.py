"""The vocabulary of jaxwm. Read this file first.

Axis letters: M members, N environments, B batch, L records of a sequence, T time, H horizon, A action size.
Every environment is batched by construction, so the arrays of a `Step` carry a leading `[N]`; the replay ring stores
`[time, N, ...]`; batches are `[B, L, ...]`. The member axis M is added by the trainer and appears nowhere below it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.errors import check_number

Array = jax.Array
Key = jax.Array
PyTree = Any
Metrics = dict[str, Array]

FOREVER = 2**31 - 1
"""A `Repeat` that ends only when the run does."""


RESERVED = {"legal": "the action mask", "to_play": "the player to move", "sim": "the state of the simulator"}
"""Observation keys with a meaning of their own; a system that does not understand one refuses to be built."""

Mode = Literal["random", "explore", "greedy"]

T = TypeVar("T")
VARIES = "may differ between the members of a population"
Varies = Annotated[T, VARIES]
"""Marks a setting that members may have values of their own for: code reads it from `State.hyper`."""


@dataclass(frozen=True)
class Discrete:
    """One choice out of `n`: int32 `[N]`."""

    n: int

    def __post_init__(self):
        check_number("the number of options of Discrete", self.n, least=1, whole=True)


@dataclass(frozen=True)
class MultiDiscrete:
    """Several independent choices, `n[i]` options for the i-th: int32 `[N, len(n)]`."""

    n: tuple[int, ...]

    def __post_init__(self):
        if not isinstance(self.n, tuple) or not self.n:
            raise ValueError(f"MultiDiscrete wants a tuple with the options of each choice, not {self.n!r}")
        for n in self.n:
            check_number("the number of options of MultiDiscrete", n, least=1, whole=True)


@dataclass(frozen=True)
class Box:
    """A continuous vector of `size` entries: float32 `[N, size]`.
    Agents act in [-1, 1]; the environment's constructor scales to the native bounds."""

    size: int

    def __post_init__(self):
        check_number("the size of Box", self.size, least=1, whole=True)


@dataclass(frozen=True)
class Mixed:
    """Choices and a vector at once, such as a dict of actions: float32 `[N, len(n) + size]`.
    The choices come first, as whole numbers, `n[i]` options for the i-th; then `size` entries in [-1, 1]."""

    n: tuple[int, ...]
    size: int

    def __post_init__(self):
        MultiDiscrete(self.n)
        check_number("the size of Mixed", self.size, least=1, whole=True)


ActionSpace = Discrete | MultiDiscrete | Box | Mixed


@dataclass(frozen=True)
class Spec:
    """What an agent must know of an environment.

    `obs` is one `jax.ShapeDtypeStruct` or a dict of them, without the `[N]` axis. The dtype tells the kind: uint8
    `[H, W, C]` is an image, bool is a set of 0/1 planes or flags, float32 a vector. What is given in another form is
    kept in this one: nested dicts and tuples as one dict, with names joined by "_"; uint8 `[H, W]` as `[H, W, 1]`; all
    other numbers as float32. Environments go on returning the form that was given.

    `simulate(sim, action) -> Step` is the environment itself as a model, for systems that search in it: `sim` is the
    observation of that name, leaves `[N, ...]`, and so is the `sim` in the observation of the result. No auto-reset:
    after an end it stays there, with reward 0. In a game the reward is that of the player who moved."""

    name: str
    obs: PyTree
    action: Any  # an ActionSpace; None for recordings in which nobody acts
    max_steps: int | None = None  # the time limit of an episode in environment steps; None: unknown
    simulate: Callable[[PyTree, Array], Step] | None = None
    players: int = 1  # how many the agent moves for, in turn: 2 in games against itself
    one_hot: bool = False  # the observation, a single bool array, always has one True entry: the index of a state

    def __post_init__(self):
        if self.action is not None and not isinstance(self.action, ActionSpace):
            raise ValueError(
                f"{self.name}: the action space is Discrete, MultiDiscrete, Box or Mixed, not {self.action!r}"
            )
        if self.max_steps is not None:
            check_number(f"{self.name}: max_steps", self.max_steps, least=1, whole=True)
        object.__setattr__(self, "obs", _usual(self.name, self.obs))
        _check_reserved(self.name, self.obs if isinstance(self.obs, Mapping) else {"obs": self.obs}, self.action)
        if self.one_hot and (isinstance(self.obs, Mapping) or self.obs.dtype != np.bool_):
            raise ValueError(f"{self.name}: a one-hot observation is a single bool array, not {self.obs}")


def flatten(tree: PyTree, known: Container[str] = ("sim",), path: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, tuples and lists, with names: keys and places, joined by "_".
    What has a `known` name is a leaf, whatever it is. ValueError for a key that is no text."""
    label = "_".join(map(str, path))
    if not isinstance(tree, Mapping | tuple | list) or (path and label in known):
        yield label, tree
        return
    fields = getattr(tree, "_fields", range(len(tree)))
    for key, part in tree.items() if isinstance(tree, Mapping) else zip(fields, tree, strict=True):
        if isinstance(tree, Mapping) and not isinstance(key, str):
            raise ValueError(f"sensors are named by text, not by {key!r}")
        yield from flatten(part, known, (*path, key))


def _usual(name: str, obs: PyTree) -> PyTree:
    """`Spec.obs` in its usual form. ValueError where something else is in it, or a name twice."""
    if not isinstance(obs, Mapping | tuple | list):
        return _usual_sensor(f"{name}: the observation 'obs'", obs)
    try:
        leaves = list(flatten(obs))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    found: dict[str, Any] = {}
    for key, leaf in leaves:
        if key in found:
            raise ValueError(f"{name}: two sensors would be called {key!r}: rename one of them")
        found[key] = leaf if key == "sim" else _usual_sensor(f"{name}: the observation {key!r}", leaf, key in RESERVED)
    return found


def _usual_sensor(what: str, leaf: Any, reserved: bool = False) -> Any:
    """The struct of a sensor in its usual form. ValueError unless it is an array's, with something in it."""
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise ValueError(f"{what} must be a jax.ShapeDtypeStruct, not {type(leaf).__name__}")
    shape, dtype = tuple(leaf.shape), leaf.dtype
    if 0 in shape:
        raise ValueError(f"{what} of shape {shape} is empty")
    if not (dtype == np.bool_ or jnp.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, np.floating)):
        raise ValueError(f"{what} is {dtype}: sensors are numbers or flags")
    if reserved or dtype in (np.bool_, np.float32) or (dtype == np.uint8 and len(shape) > 2):
        return leaf
    grey = dtype == np.uint8 and len(shape) == 2
    return jax.ShapeDtypeStruct((*shape, 1) if grey else shape, np.uint8 if grey else np.float32)


def _check_reserved(name: str, obs: Mapping[str, Any], action: ActionSpace | None) -> None:
    """ValueError where a sensor has a reserved name and is not what that name stands for."""
    options = int(np.sum(getattr(action, "n", 0)))
    wanted = {
        "legal": (f"the action mask, bool [{options}]", lambda x: x.dtype == np.bool_ and x.shape == (options,)),
        "to_play": ("the player to move, an integer []", lambda x: x.shape == () and x.dtype.kind in "iu"),
    }
    for key, (meaning, fits) in wanted.items():
        if key in obs and not fits(obs[key]):
            raise ValueError(f"{name}: the observation key {key!r} is reserved for {meaning}: rename the sensor")


def action_dtype(action: ActionSpace | None) -> Any:
    """float32 for `Box` and `Mixed`, int32 for the discrete spaces."""
    return np.float32 if isinstance(action, Box | Mixed) else np.int32


class Step(NamedTuple):
    """What an environment returns; every field has a leading axis `[N]`.
    The step after `is_last` ignores the action and returns the reset observation with `is_first` and reward 0.
    `is_terminal` is a true end (the future is worth nothing); a time limit sets `is_last` alone."""

    obs: PyTree
    reward: Array  # float32 [N], raw
    is_first: Array  # bool [N]
    is_last: Array  # bool [N]
    is_terminal: Array  # bool [N]


class Env(NamedTuple):
    """A batch of `num_envs` environments as two functions.
    pure=True:  `reset(key) -> (env_state, Step)` and `step(env_state, action) -> (env_state, Step)` are JAX functions.
    pure=False: `reset(keys[M]) -> (handle, Step)` builds a pool of M * N environments, one seed each; `step(handle,
                action[M, N, ...]) -> (handle, Step)` are host functions over NumPy arrays `[M, N, ...]`.
    `metrics(env_state) -> {name: [N]}`, for pure environments: what a game counts besides its reward, such as
    achievements, in the episode so far. They are read at its last step, while training and in evaluations."""

    spec: Spec
    reset: Callable[..., tuple[PyTree, Step]]
    step: Callable[[PyTree, Any], tuple[PyTree, Step]]
    num_envs: int
    pure: bool
    close: Callable[[PyTree], None] = lambda handle: None
    metrics: Callable[[PyTree], Metrics] = lambda env_state: {}


class Data(NamedTuple):
    """Recorded episodes, as a source of records in place of an environment.
    `read(first, count) -> Record` gives rows `[count, N, ...]` of N streams side by side, NumPy arrays without extras;
    the action is None where nobody acted. Rows may be asked for without end: a stream begins again after `rows`."""

    spec: Spec
    read: Callable[[int, int], Record]
    rows: int
    num_envs: int  # streams, N
    env: str | None = None  # name of the environment that the episodes come from


Source = Env | Data
"""Where records come from."""


class Record(NamedTuple):
    """One replay entry: the `Step` at t, the action taken after it (None where nobody acts), the agent's extras."""

    obs: PyTree
    reward: Array
    is_first: Array
    is_last: Array
    is_terminal: Array
    action: Array
    extras: PyTree


class Index(NamedTuple):
    """Where a sequence starts: `row` int32 `[B]` counts rows ever written, `env` int32 `[B]`."""

    row: Array
    env: Array


class Batch(NamedTuple):
    """Sequences `[B, L, ...]` with their place in the ring.
    `weight` float32 `[B]` is the importance weight (1 for uniform sampling)."""

    record: Record
    index: Index
    weight: Array


class Writes(NamedTuple):
    """The ring that a train step writes: its name, and how many records it holds."""

    ring: str
    capacity: int


class TrainStep(NamedTuple):
    """One named way of learning: `update(state, batch, key) -> (state, feedback, metrics)`.

    `sampler` is "uniform", "latest", "online", a pure function `(state, ring, key, size) -> Batch` or a
    `replay.Sampler`; `size` is `batch_size`, or a device's part of it where the replay is split among several.
    `feedback` maps names of extras to arrays `[B, L', ...]` with `L' <= length`, aligned with the last L' records; it
    is written back to the ring. `metrics` are float32 scalars. A step that `writes` returns new records `[K, N', ...]`
    (rows of N' streams) in place of feedback.

    Where `shared` is set, as for every gradient step, `update` also takes `share`, a `jaxwm.learning.share.Share`: each
    of several devices works on its part of the batch. Other steps are repeated by every device on the whole batch."""

    update: Callable[..., tuple[PyTree, Any, Metrics]]
    batch_size: int
    length: int  # records read, a context record included
    sampler: Any = "uniform"
    shared: bool = False
    reads: str | tuple[str, ...] = "real"  # ring to sample from; given several, the sampler gets `{name: Ring}`
    writes: Writes | None = None


class Dream(NamedTuple):
    """An imagined trajectory; every field is `[B, H, ...]` (`obs` is None where there is no decoder).
    `action[:, t]` leads to `obs[:, t]`, with which `reward[:, t]` arrives; `cont` is the undiscounted probability that
    the episode goes on after it."""

    obs: PyTree
    reward: Array
    cont: Array
    action: Array
    latent: PyTree

    def swapped(self) -> Dream:
        """Return the dream with its first two axes swapped: batch first where it was time first."""
        return jax.tree.map(lambda x: x.swapaxes(0, 1), self)


Acted = tuple[PyTree, Array, dict[str, Array]]
"""Carry, action and extras: what `Agent.act` returns."""


class Agent(NamedTuple):
    """A world-model agent as pure functions, in the manner of an optax transformation.

    init(key, hyper) -> State                    one pytree: params, opt, hyper, step, and what the system adds
    reset(state, num_envs) -> Carry              the policy's memory before the first step
    act(state, carry, step, key, mode) -> (carry, action, extras); None for systems in which nothing acts
    train_steps                                  {name: TrainStep}
    imagine(state, context, actions, key, horizon) -> Dream, or None; `context` is a `Record` [B, L, ...]. `actions`
                                                 [B, H, ...] start with the one of record L - 1, and dreamed step i is
                                                 record L + i; None lets the policy choose them
    schedule                                     the order of collecting and learning, as data
    hyper                                        scalars that may differ between members, with their defaults
    scores(state, batch, key) -> {name: []}      how good the model is on records that it did not learn from, or None:
                                                 for systems in which nothing acts, which have no return"""

    init: Callable[[Key, Mapping[str, Any]], Any]
    reset: Any  # Callable[[State, int], Carry], or None
    act: Any  # Callable[[State, Carry, Step, Key, str], tuple[Carry, Array, PyTree]], or None
    train_steps: dict[str, TrainStep]
    imagine: Callable[..., Dream] | None
    schedule: tuple[Word, ...]
    hyper: dict[str, float]
    scores: Callable[[Any, Batch, Key], Metrics] | None = None

    def train_step(self, state: Any, batches: Batch | dict[str, Batch], key: Key) -> tuple[Any, Metrics]:
        """Apply every named step once: `(state, {name: Batch}, key) -> (state, metrics)`.
        An agent with a single step takes the batch itself. Feedback for the replay is dropped here; call
        `train_steps[name].update` to have it."""
        if not isinstance(batches, dict):
            if len(self.train_steps) > 1:
                raise ValueError(f"this agent has the steps {sorted(self.train_steps)}: pass {{name: Batch}}")
            batches = dict.fromkeys(self.train_steps, batches)
        if batches.keys() != self.train_steps.keys():
            raise ValueError(f"expected batches for {sorted(self.train_steps)}, got {sorted(batches)}")
        for name, step in self.train_steps.items():
            _check_batch(name, batches[name], step.length)
        metrics = {}
        for index, (name, step) in enumerate(self.train_steps.items()):
            state, _, new = step.update(state, batches[name], jax.random.fold_in(key, index))
            metrics |= new
        return state, metrics


def _check_batch(name: str, batch: Any, length: int) -> None:
    """ValueError unless `batch` holds sequences `[B, length]` of one member."""
    if not isinstance(batch, Batch):
        raise ValueError(f"step {name!r} wants a jaxwm.types.Batch (see replay.sample), not {type(batch).__name__}")
    shape = batch.record.reward.shape
    if len(shape) != 2 or shape[1] != length:
        raise ValueError(
            f"step {name!r} wants sequences [B, {length}], got {list(shape)}: sample them with length={length}, and "
            "map populations with jax.vmap(agent.train_step)"
        )


@dataclass(frozen=True)
class Collect:
    """Take `steps` environment steps of one member, summed over its N environments (rounded up to a multiple of N).
    `fresh` starts new episodes first."""

    steps: int
    mode: Mode = "explore"
    fresh: bool = False


@dataclass(frozen=True)
class Load:
    """Read `rows` more rows of a `Data` source into the replay, N records each."""

    rows: int


@dataclass(frozen=True)
class Train:
    """Apply the step `name` `updates` times; `updates` may be a function of the environment steps collected so far.
    `until(metrics) -> bool` stops a member early; the shared counters still advance by `updates`."""

    name: str
    updates: int | Callable[[Array], Array] = 1
    until: Callable[[dict[str, Array]], Array] | None = None


@dataclass(frozen=True)
class Repeat:
    """Run `body` `times` times."""

    times: int
    body: tuple[Word, ...] = field(default_factory=tuple)


Word = Collect | Load | Train | Repeat
