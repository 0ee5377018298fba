"""One clear sentence for a wrong name, option or value: what is wrong, and what would be right."""

import math
import numbers
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

_JAX = {
    "jax_enable_x64": False, "jax_default_prng_impl": "threefry2x32", "jax_disable_jit": False, "jax_debug_nans": False,
    "jax_debug_infs": False, "jax_numpy_rank_promotion": "allow", "jax_numpy_dtype_promotion": "standard",
}  # fmt: skip
"""Settings with which everything here is computed: in 32 bits, compiled, NaN where a number is absent."""


def check_jax() -> None:
    """Raise ValueError where a global setting of JAX is one that jaxwm does not run with."""
    import jax

    for name, needed in _JAX.items():
        if (found := getattr(jax.config, name)) != needed:
            remedy = f"unset {name.upper()}, or jax.config.update({name!r}, {needed!r})"
            raise ValueError(f"jaxwm does not run with {name}={found}: {remedy}")


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `known` that look like `word`, best first; case, suite and version may differ."""

    def likeness(name: str) -> float:
        whole = SequenceMatcher(None, word.lower(), name.lower()).ratio()
        task = SequenceMatcher(None, _core(word), _core(name)).ratio()
        # The task says more than the suite, and the suite decides between equals: "Pong" is atari/Pong first.
        return max(whole, task) + whole / 10

    ranked = sorted(((likeness(name), name) for name in known), key=lambda pair: (-pair[0], pair[1]))
    return [name for score, name in ranked[:count] if score > 0.6]


def suggest(name: Any, known: Iterable[str]) -> str:
    """`did you mean dreamer-v3?`, or `there are ...` with all of `known` where none is near: the end of a message."""
    known = list(known)
    close = nearest(str(name), known)
    return f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(known)}"


def check_options(name: str, options: Iterable[str], valid: Iterable[str]) -> None:
    """Raise ValueError where `options` has a name that is not in `valid`."""
    valid = sorted(valid)
    if wrong := [option for option in options if option not in valid]:
        close = nearest(wrong[0], valid, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{name} has no option {wrong[0]!r}{hint}; its options are {', '.join(valid) or 'none'}")


def _core(name: str) -> str:
    """The task alone, without suite, version and case: "pong" of "gymnax/Pong-misc"."""
    return name.lower().split("/")[-1].split("-")[0]


def check_bins(bins: int) -> None:
    """ValueError unless `bins` is an odd number of at least 3: they are symmetric, with one at 0."""
    if bins < 3 or bins % 2 == 0:
        raise ValueError(f"need an odd number of bins, at least 3, got {bins}")


def check_number(
    what: str, value: Any, least: float = -math.inf, most: float = math.inf, above: float = -math.inf,
    whole: bool = False,
) -> None:  # fmt: skip
    """Raise ValueError unless `value` is a finite number in [least, most] and greater than `above`; no bool is one."""
    if isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool):
        if -math.inf < value < math.inf and least <= value <= most and value > above:  # type: ignore[operator]
            return
    lower = f" above {above:g}" if above > -math.inf else f" of at least {least}" if least > -math.inf else ""
    upper = f" {'and' if lower else 'of'} at most {most}" if most < math.inf else ""
    raise ValueError(f"{what} must be a {'whole ' if whole else ''}number{lower}{upper}, not {value!r}")


def check_choice(what: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}, not {value!r}")


class Range(NamedTuple):
    """Where a number may lie, as a part of a field's annotation; see `check_number`."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf


Count = Annotated[int, Range(least=1)]
Several = Annotated[int, Range(least=2)]
Natural = Annotated[int, Range(least=0)]
Amount = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(least=0, most=1)]
Positive = Annotated[float, Range(above=0)]


def check_types(settings: Any) -> None:
    """Raise ValueError where a field of a dataclass does not have its annotated type (int, float, bool, str, Literal),
    or lies outside of its annotated `Range`. Numbers must be finite. Other annotations are not checked."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value, marks = getattr(settings, name), getattr(hint, "__metadata__", ())
        kind = hint.__origin__ if marks else hint
        if kind in (int, float):
            check_number(name, value, whole=kind is int)
        elif kind is str and not isinstance(value, str):
            raise ValueError(f"{name} must be text, not {value!r}")
        elif kind is bool or get_origin(kind) is Literal:
            check_choice(name, value, get_args(kind) or (True, False))
        for mark in marks:
            if isinstance(mark, Range):
                check_number(name, value, *mark, whole=kind is int)
