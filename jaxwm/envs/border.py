"""The border between the world and jaxwm: whatever an environment returns or is sent is checked here.

A value is converted where nothing is lost; otherwise `Misfit` says in one line which environment and which sensor, what
came and what was expected:

- names are those of the spec, also where they lie in nested dicts and tuples;
- shapes are those of the spec, up to axes of length 1;
- numbers keep their value: floats may be rounded to float32, integers only become floats up to 2**24, and uint8, bool
  and class indices must be whole and in range;
- a reward is one number and a flag one truth value, also as an array of one entry;
- a number that is not finite in float32 becomes 0, and `replaced` counts the steps with such a number;
- where a `legal` mask allows nothing, as at the end of some games, it allows everything;
- actions arrive inside the space: numbers in [-1, 1], indices in range.

Host environments are checked value by value, in NumPy. Pure ones are checked by structure, shape and type when they are
traced; their integers are not looked at, and those above 2**24 are rounded.

K environments; every host array here has the leading axis `[K]`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import ActionSpace, Array, Box, Discrete, Mixed, PyTree, Spec, action_dtype, flatten


class Misfit(ValueError):
    """What an environment returned, or was sent, is not what its spec says."""


# --- Both kinds of environments -----------------------------------------------------------------------------------


def observation(spec: Spec, obs: Any, convert: Callable[[str, Any, Any], Any]) -> PyTree:
    """Apply `convert(what, value, struct)` to every sensor of `spec.obs`, by name.

    Raises `Misfit` where `obs` has other names than the spec."""
    if not isinstance(spec.obs, Mapping):
        return convert(f"{spec.name}: the observation", obs, spec.obs)
    obs = flattened(spec, obs)
    if obs.keys() != spec.obs.keys():
        raise Misfit(f"{spec.name}: the observation has the sensors {_names(obs)}, expected {_names(spec.obs)}")
    return {key: convert(f"{spec.name}: the sensor {key!r}", obs[key], struct) for key, struct in spec.obs.items()}


def flattened(spec: Spec, obs: Any) -> Any:
    """An observation as a flat dict where `spec.obs` is one, in whichever form it was given. Raises `Misfit`."""
    if not isinstance(spec.obs, Mapping) or (isinstance(obs, Mapping) and obs.keys() == spec.obs.keys()):
        return obs
    if not isinstance(obs, Mapping | tuple):
        raise Misfit(f"{spec.name}: the observation is {_told(obs)}, expected a dict with {_names(spec.obs)}")
    try:
        return dict(flatten(obs, spec.obs))
    except ValueError as error:
        raise Misfit(f"{spec.name}: {error}") from None


def action_shape(space: ActionSpace) -> tuple[int, ...]:
    """The shape of one action, without leading axes."""
    if isinstance(space, Discrete):
        return ()
    return (len(getattr(space, "n", ())) + getattr(space, "size", 0),)


def check_action(spec: Spec, action: Any, lead: tuple[int, ...]) -> None:
    """Raise `Misfit` unless `action` has the shape `[*lead, ...]` and the kind of number of the action space."""
    expected = (*lead, *action_shape(spec.action))
    if np.shape(action) != expected:
        raise Misfit(f"{spec.name}: the action has shape {np.shape(action)}, expected {expected}")
    if action.dtype.kind not in ("iufV" if isinstance(spec.action, Box | Mixed) else "iu"):  # V: bfloat16
        raise Misfit(f"{spec.name}: the action is {action.dtype}, expected {np.dtype(action_dtype(spec.action))}")


def replaced(env_state: PyTree) -> Any:
    """Steps so far in which a number was not finite, per environment; 0 where an environment does not count them."""
    return getattr(env_state, "replaced", 0)


def _open_mask(legal: Any) -> Any:
    return legal | ~legal.any(-1, keepdims=True)


def _same(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether two shapes are equal up to axes of length 1."""
    return [n for n in shape if n != 1] == [n for n in expected if n != 1]


def _names(obs: Mapping[Any, Any]) -> str:
    return ", ".join(repr(key) for key in sorted(obs, key=str)) or "no sensor"


def _told(value: Any) -> str:
    """A value in a few words."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"of type {type(value).__name__}"


# --- Host environments --------------------------------------------------------------------------------------------


def array(what: str, value: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`value` as an array of this shape and type, the very same array where it is one.

    Raises `Misfit`, which begins with `what`, where another shape or a changed number would result."""
    if isinstance(value, np.ndarray) and value.shape == shape and value.dtype == dtype:
        return value
    try:
        given = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise Misfit(f"{what} is no array ({str(error)[:100]}), expected shape {shape}") from error
    if given.dtype.kind not in "biuf":
        raise Misfit(f"{what} is {_told(value)}, expected numbers of shape {shape}")
    if not _same(given.shape, shape):
        raise Misfit(f"{what} has shape {given.shape}, expected {shape}")
    return (given if given.dtype == dtype else _exact(what, given, np.dtype(dtype))).reshape(shape)


def _exact(what: str, given: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`given` in another type; `Misfit` where that changes a number. Floats may lose digits."""
    with np.errstate(all="ignore"):
        out = given.astype(dtype, copy=False)
        kept = out.astype(given.dtype) == given
    if not (given.dtype.kind == dtype.kind == "f" or kept.all()):
        number = given[~kept].flat[0]
        raise Misfit(f"{what} holds {number} ({given.dtype}), expected {_range(dtype)}")
    return out


def _range(dtype: np.dtype) -> str:
    if dtype == np.bool_:
        return "bool, or numbers 0 and 1"
    if dtype.kind == "f":
        return f"numbers that {dtype} can hold (whole ones up to 2**{np.finfo(dtype).nmant + 1})"
    return f"{dtype}, whole numbers from {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"


def reward(name: str, value: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Rewards float32 of `shape`; a float64 or a large integer is rounded."""
    dtype = np.float32 if getattr(value, "dtype", None) == np.float32 else np.float64
    given = array(f"{name}: the reward", value, shape, dtype)
    if dtype == np.float32:
        return given
    with np.errstate(over="ignore"):
        return given.astype(np.float32)


def flag(name: str, which: str, value: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Flags bool of `shape`."""
    return array(f"{name}: {which}", value, shape, np.bool_)


def checked(spec: Spec, obs: Any, ended: np.ndarray) -> PyTree:
    """Observations `[K, ...]` of a host environment as the spec says; `ended` bool `[K]` marks last steps.

    Raises `Misfit` for wrong names, shapes and numbers."""
    num = len(ended)
    obs = observation(spec, obs, lambda what, x, struct: array(what, x, (num, *struct.shape), struct.dtype))
    if spec.one_hot and ((obs.reshape(num, -1).sum(-1) != 1) & ~ended).any():
        raise Misfit(f"{spec.name}: the observation has several entries or none, expected one-hot (Spec.one_hot)")
    return obs | {"legal": _open_mask(obs["legal"])} if isinstance(obs, dict) and "legal" in obs else obs


def finite(tree: PyTree) -> tuple[PyTree, np.ndarray | bool]:
    """`tree`, leaves `[K, ...]`, with 0 for every number that is not finite; where there was one, bool `[K]`."""
    leaves, structure = jax.tree.flatten(tree)
    bad: Any = False
    for i, x in enumerate(leaves):
        if x.dtype.kind == "f" and not (fine := np.isfinite(x)).all():
            leaves[i], bad = np.where(fine, x, x.dtype.type(0)), bad | ~fine.reshape(len(x), -1).all(-1)
    return jax.tree.unflatten(structure, leaves), bad


def native_action(spec: Spec, action: Any, lead: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | bool]:
    """Our actions `[*lead, ...]` as a pool takes them, `[K, ...]`, and where one was not finite.

    Numbers are clipped to [-1, 1]. Raises `Misfit` for a wrong shape or type and for an index out of range."""
    action = np.asarray(action)
    check_action(spec, action, lead)
    action = action.reshape(math.prod(lead), *action_shape(spec.action)).astype(action_dtype(spec.action))
    action, bad = finite(action)
    if isinstance(spec.action, Box):
        return np.clip(action, -1.0, 1.0), bad
    options = np.array(spec.action.n)
    chosen = action[:, : len(spec.action.n)] if isinstance(spec.action, Mixed) else action
    if ((chosen < 0) | (chosen >= options) | (chosen != np.rint(chosen))).any():
        raise Misfit(f"{spec.name}: the action {action.tolist()} is outside of 0 to {(options - 1).tolist()}")
    if isinstance(spec.action, Mixed):
        action = np.concatenate([chosen, np.clip(action[:, len(options) :], -1.0, 1.0)], -1)
    return action, bad


# --- Reading native observations ----------------------------------------------------------------------------------


class Sensor(NamedTuple):
    """One array of a native observation.

    `path` leads to it through dicts and tuples. It has `shape` there, is read as `dtype`, and `view` makes
    `[K, *struct.shape]` of `[K, *shape]`."""

    name: str
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: Any
    struct: jax.ShapeDtypeStruct
    view: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Reader:
    """From native observations of the environment `name` to ours: an array where `bare`, else a dict."""

    name: str
    sensors: tuple[Sensor, ...]
    bare: bool

    @property
    def structs(self) -> Any:
        """`Spec.obs`."""
        return self._form({sensor.name: sensor.struct for sensor in self.sensors})

    def __call__(self, obs: Any) -> Any:
        """Read stacked native observations, leaves `[K, ...]`; the result shares no memory with them."""

        def one(sensor: Sensor) -> np.ndarray:
            native = self._find(sensor, obs)
            shape = (len(native), *sensor.shape)
            return sensor.view(np.array(array(self._what(sensor), native, shape, sensor.dtype), order="C"))

        return self._form({sensor.name: one(sensor) for sensor in self.sensors})

    def rows(self, rows: Sequence[Any]) -> Any:
        """Read K native observations, one per environment."""

        def one(sensor: Sensor, obs: Any) -> np.ndarray:
            return array(self._what(sensor), self._find(sensor, obs), sensor.shape, sensor.dtype)

        return self._form({s.name: s.view(np.stack([one(s, obs) for obs in rows])) for s in self.sensors})

    def _form(self, named: dict[str, Any]) -> Any:
        return next(iter(named.values())) if self.bare else named

    def _what(self, sensor: Sensor) -> str:
        return f"{self.name}: the observation" if self.bare else f"{self.name}: the sensor {sensor.name!r}"

    def _find(self, sensor: Sensor, obs: Any) -> Any:
        for key in sensor.path:
            named = isinstance(key, str)
            if not isinstance(obs, Mapping if named else tuple | list | np.ndarray):
                form = f"a dict with {key!r}" if named else f"a tuple with entry {key}"
                raise Misfit(f"{self.name}: the observation is {_told(obs)}, expected {form}")
            if key not in (obs if isinstance(obs, Mapping) else range(len(obs))):
                has = _names(obs) if isinstance(obs, Mapping) else f"{len(obs)} entries"
                raise Misfit(f"{self.name}: the observation has {has}, expected {key!r} too")
            obs = obs[key]
        return obs


def reader_of(spec: Spec) -> Reader:
    """The reader of observations that already are what `spec.obs` says."""
    bare = not isinstance(spec.obs, Mapping)
    named: Any = {"": spec.obs} if bare else spec.obs
    sensors = (Sensor(n, () if bare else (n,), s.shape, s.dtype, s, lambda x: x) for n, s in named.items())
    return Reader(spec.name, tuple(sensors), bare)


# --- Pure environments --------------------------------------------------------------------------------------------


def strong(x: Any, dtype: Any = None) -> Array:
    """`x` as an array with a strong dtype; a typed key is left alone."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, dtype or x.dtype)


def traced(what: str, value: Any, struct: Any, reshape: bool = True) -> Array:
    """`value` with the shape and type of `struct`, strongly typed.

    Raises `Misfit`, when traced, where another shape or a changed number could result."""
    try:
        x = jnp.asarray(value)
    except (ValueError, TypeError) as error:
        raise Misfit(f"{what} is {_told(value)}, expected {struct.dtype} of shape {struct.shape}") from error
    if not (_same(x.shape, struct.shape) if reshape else x.shape == struct.shape):
        raise Misfit(f"{what} has shape {x.shape}, expected {struct.shape}")
    if not _holds(struct.dtype, x.dtype):
        raise Misfit(
            f"{what} is {x.dtype}, expected {struct.dtype}: a cast would drop fractions or wrap around, so cast it "
            "yourself where it does not"
        )
    return strong(x, struct.dtype).reshape(struct.shape)


def _holds(wide: Any, narrow: Any) -> bool:
    """Whether numbers of type `narrow` keep their value in `wide`, but for the digits of floats and large integers."""
    if wide == narrow or narrow == jnp.bool_:
        return True
    if jnp.issubdtype(wide, jnp.floating):
        return jnp.issubdtype(narrow, jnp.floating) or jnp.issubdtype(narrow, jnp.integer)
    if jnp.issubdtype(wide, jnp.integer) and jnp.issubdtype(narrow, jnp.integer):
        outer, inner = jnp.iinfo(wide), jnp.iinfo(narrow)
        return outer.min <= inner.min and inner.max <= outer.max
    return False


def traced_observation(spec: Spec, obs: Any) -> PyTree:
    """One observation of a pure environment as the spec says. Raises `Misfit` when traced."""

    def convert(what: str, value: Any, struct: Any) -> Any:
        return traced(what, value, struct) if hasattr(struct, "shape") else traced_state(what, value, struct)

    obs = observation(spec, obs, convert)
    return obs | {"legal": _open_mask(obs["legal"])} if isinstance(obs, dict) and "legal" in obs else obs


def traced_state(what: str, new: PyTree, reference: PyTree) -> PyTree:
    """A state with the types of `reference`. Raises `Misfit`, when traced, for another structure, shape or kind."""
    if jax.tree.structure(new) != jax.tree.structure(reference):
        raise Misfit(f"{what} is {jax.tree.structure(new)}, expected {jax.tree.structure(reference)}")
    same = lambda path, x, like: traced(what + jax.tree_util.keystr(path), x, like, reshape=False)  # noqa: E731
    return jax.tree_util.tree_map_with_path(same, new, reference)


def traced_reward(name: str, value: Any) -> Array:
    """A reward, float32 `[]`."""
    return traced(f"{name}: the reward", value, jax.ShapeDtypeStruct((), jnp.float32))


def traced_flag(name: str, which: str, value: Any) -> Array:
    """A flag, bool `[]`, true where a number is not 0."""
    number = traced(f"{name}: {which}", value, jax.ShapeDtypeStruct((), jnp.float32))
    return number != 0


def traced_finite(tree: PyTree) -> tuple[PyTree, Array]:
    """`tree` with 0 for every number that is not finite; whether there was one, bool `[]`."""
    leaves, structure = jax.tree.flatten(tree)
    bad = jnp.bool(False)
    for i, x in enumerate(leaves):
        if jnp.issubdtype(x.dtype, jnp.floating):
            fine = jnp.isfinite(x)
            leaves[i], bad = jnp.where(fine, x, 0), bad | ~fine.all()
    return jax.tree.unflatten(structure, leaves), bad


def traced_action(spec: Spec, action: Array, lead: tuple[int, ...]) -> Array:
    """Actions `[*lead, ...]` of a pure environment: numbers clipped to [-1, 1], 0 where they are not finite.

    Raises `Misfit`, when traced, for a wrong shape or type."""
    check_action(spec, action, lead)
    action = strong(action, action_dtype(spec.action))
    if isinstance(spec.action, Mixed):
        count = len(spec.action.n)
        vector = jnp.clip(traced_finite(action[..., count:])[0], -1.0, 1.0)
        return jnp.concatenate([action[..., :count], vector], -1)
    return jnp.clip(traced_finite(action)[0], -1.0, 1.0) if isinstance(spec.action, Box) else action
