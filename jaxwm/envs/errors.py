"""One clear sentence for a wrong name or option."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `known` that look like `word`, best first; case, suite and version may differ."""

    def likeness(name: str) -> float:
        whole = SequenceMatcher(None, word.lower(), name.lower()).ratio()
        task = SequenceMatcher(None, _core(word), _core(name)).ratio()
        # The task says more than the suite, and the suite decides between equals: "Pong" is atari/Pong first.
        return max(whole, task) + whole / 10

    ranked = sorted(((likeness(name), name) for name in known), key=lambda pair: (-pair[0], pair[1]))
    return [name for score, name in ranked[:count] if score > 0.6]


def check_options(name: str, options: Iterable[str], valid: Iterable[str]) -> None:
    """Raise ValueError where `options` has a name that is not in `valid`."""
    valid = sorted(valid)
    wrong = [option for option in options if option not in valid]
    if not wrong:
        return
    close = nearest(wrong[0], valid, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"{name} has no option {wrong[0]!r}{hint}; its options are {', '.join(valid) or 'none'}")


def _core(name: str) -> str:
    """The task alone, without suite, version and case: "pong" of "gymnax/Pong-misc"."""
    return name.lower().split("/")[-1].split("-")[0]
