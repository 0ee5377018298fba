"""`System`: what each agent's file ends in. Everything about a system that is not code stands here, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from jaxwm.types import VARIES

ANY_OBSERVATION = ("image", "binary", "vector")  # Every kind of sensor that `nets.encoders` can see.

ANY_ACTION = ("Discrete", "MultiDiscrete", "Box")


@dataclass(frozen=True)
class System:
    """A system: its constructor, its settings, and what is said of it.
    `sees`, `predicts` and `acts` are half a line each; the order is printed from `Agent.schedule`."""

    make: Callable[..., Any]  # `(spec, config) -> Agent`.
    config: type  # Its settings, a frozen dataclass.
    presets: Mapping[str, Any]  # Settings by name.
    default: str  # The preset that is taken where none is named.
    summary: str  # One line.
    year: int = 0  # Year of its paper.
    paper: str = ""  # Authors, title.
    sees: str = ""
    predicts: str = ""
    acts: str = ""
    env: str = "gymnax/Catch-bsuite"  # Environment that it is trained on where none is named.
    steps: int = 6000  # Environment steps of such a run; updates of a system that learns from video.
    observations: tuple[str, ...] = ANY_OBSERVATION
    """Kinds of sensors that it can see (`nets.sensors`), or "one-hot" or "board"."""
    actions: tuple[str, ...] = ANY_ACTION  # Action spaces that it can take, by the names of their types.
    mixed: bool = False  # Whether it can take choices and a vector at once, see `types.Mixed`.
    players: int = 1  # The most that it can move for, see `Spec.players`.
    obeys: tuple[str, ...] = ()  # Reserved observation keys that it understands, see `types.RESERVED`.
    offline: bool = False  # Whether it can learn from recorded episodes: its targets need nothing of what acting saw.
    baseline: bool = False  # Whether it has no model of the world and is here to be compared with.
    video: bool = False  # Whether it learns from recordings without actions.
    copies: Mapping[str, str | None] = field(default_factory=dict)
    """Fields of its state that are copies of a component of the parameters (slow critics), or of all (None): what
    begins with other weights copies them anew."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Settings that had another name: `{old: new}`. Flags and files may still use the old one."""


def hyper_of(config: Any) -> dict[str, float]:
    """`Agent.hyper`: the settings that are marked with `types.Varies`, with their values."""
    hints = get_type_hints(type(config), include_extras=True)
    return {name: getattr(config, name) for name, hint in hints.items() if VARIES in getattr(hint, "__metadata__", ())}
