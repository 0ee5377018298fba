"""Dreams of real windows and their errors: imagine, measure, and put the numbers in words.

Two baselines give an error its meaning: the last observation kept (a world that never changes), and the same dream
under the actions of another window (a model that ignores its actions dreams equally well under any)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from jaxwm.nets.sensors import kind, sensors
from jaxwm.types import Agent, Dream, Key, Record, Spec

CHUNK = 16  # windows dreamed in one program: decoding many images at once takes gigabytes
UNITS = {"image": "mean pixel error (0 to 1)", "binary": "share of wrong entries", "vector": "mean error (in std)"}
LABELS = {"dream": "dream", "shuffled": "dream, actions of another sequence", "copy": "last value, kept"}
"""Curves of an error, and what they are called."""

MARGIN = 0.02  # differences below this share of the largest error of the last value count as none


class Study(NamedTuple):
    """Windows and the dreams that belong to them, as NumPy arrays."""

    window: Record  # real, [B, L + H, ...]
    valid: np.ndarray  # bool [B, H]: the episode is not over before this step
    dream: Dream  # from the first L records of each window, under its own actions; its latents are those of `_shown`
    shuffled: Dream  # the same under the actions of another window

    @property
    def context(self) -> int:
        """Records that are seen before the dream begins."""
        return self.window.reward.shape[1] - self.valid.shape[1]


def imagine(agent: Agent, state: Any, window: Record, valid: np.ndarray, key: Key) -> Study:
    """Dream every window twice, under its own actions and under those of the next window.
    With L records of context, `actions[:, i]` is the action of record L - 1 + i: the first one is what was done after
    the last observation that the model sees. The i-th dreamed step is therefore record L + i. Drops what does not fill
    the last chunk of windows. Of latents only what is shown is kept."""
    horizon = valid.shape[1]
    context = window.reward.shape[1] - horizon
    chunk = min(CHUNK, len(valid))
    window, valid = jax.tree.map(lambda x: x[: len(x) // chunk * chunk], (window, valid))
    start = jax.tree.map(lambda x: x[:, :context], window)
    actions = window.action[:, context - 1 : -1]
    run = jax.jit(lambda state, start, actions, key: agent.imagine(state, start, actions, key, horizon))  # type: ignore[misc]

    def all_chunks(actions: Any) -> Dream:
        parts = []
        for i in range(0, len(valid), chunk):
            part = jax.tree.map(lambda x, i=i: x[i : i + chunk], (start, actions))
            done = run(state, *part, jax.random.fold_in(key, i))
            parts.append(jax.device_get(done._replace(latent=_shown(done.latent))))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    return Study(window, valid, all_chunks(actions), all_chunks(np.roll(actions, 1, 0)))


def _shown(latent: Any) -> Any:
    """What is shown of a dream's latents, by name: `attention [B, H, layers, L + H - 1]` of a transformer's frames, and
    the tokens `[B, H, rows, columns]` of a frame; those that a model has."""
    found = latent if isinstance(latent, dict) else {}
    return {name: found[name] for name in ("attention", "tokens") if name in found}


def errors(spec: Spec, study: Study) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """`{quantity: (unit, {curve: error [B, H]})}` of every sensor and the reward; NaN where the episode is over.
    The curves are "dream", "shuffled" (another window's actions) and "copy" (the last observation of the context).
    Images count their mean absolute pixel difference over 255, flags and planes the share that is wrong, vectors the
    mean absolute difference in standard deviations of the real entries, rewards the absolute difference."""
    out, (truth, dream, other) = {}, (study.window, study.dream, study.shuffled)
    for name, shape in sensors(spec.obs).items() if dream.obs is not None else ():
        what = kind(shape)
        real, *dreamed = (np.asarray(sensors(each.obs)[name]) for each in (truth, dream, other))
        title = "observation" if name == "obs" else name
        out[title] = UNITS[what], _curves(study, real, dreamed, _scale(what, real))
    return out | {"reward": ("mean error", _curves(study, truth.reward, [dream.reward, other.reward], 1.0))}


def _scale(what: str, real: np.ndarray) -> Any:
    """What differences of a sensor are divided by; a number that never changes keeps its own unit."""
    if what != "vector":
        return 255.0 if what == "image" else 1.0
    std = real.std((0, 1))
    return np.where(std > 1e-6, std, 1.0)


def _curves(study: Study, real: Any, dreamed: list[Any], scale: Any) -> dict[str, np.ndarray]:
    past, future = real[:, study.context - 1, None], real[:, study.context :]

    def error(guess: np.ndarray) -> np.ndarray:
        pairs = zip(future, np.broadcast_to(guess, future.shape), strict=True)  # one by one: images are large
        each = [np.abs(a.astype(np.float32) - b.astype(np.float32)) / scale for a, b in pairs]
        means = np.stack([x.reshape(len(x), -1).mean(1) for x in each])
        return np.where(study.valid, means, np.nan)

    return {name: error(guess) for name, guess in zip(LABELS, (*dreamed, past), strict=True)}


def mean_and_band(error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over sequences `[B, H] -> [H]`, and half the width of its 95 % interval; NaN where nothing counts."""
    valid = ~np.isnan(error)
    count = valid.sum(0)
    total = np.where(valid, error, 0).sum(0)
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    square = np.where(valid, (error - mean) ** 2, 0).sum(0)
    half = 1.96 * np.sqrt(square / np.maximum(count - 1, 1) / np.maximum(count, 1))
    return mean, half


def verdict(found: dict[str, Any]) -> list[str]:
    """A sentence or two for each quantity of `errors`: where the dream beats its baselines, and what to do if not."""
    means = {name: {key: mean_and_band(e)[0] for key, e in curves.items()} for name, (_, curves) in found.items()}
    return [f"{name}: {text}" for name, mean in means.items() for text in _sentences(mean)]


def unchanging(curves: dict[str, np.ndarray]) -> bool:
    """Whether a quantity never differs from its last value in any sequence."""
    return not np.nansum(curves["copy"])


def _sentences(mean: dict[str, np.ndarray]) -> Iterator[str]:
    there = np.isfinite(mean["dream"])
    dream, other, copy = (mean[name][there] for name in LABELS)
    if unchanging(mean):
        yield "never changes in these sequences, so there is nothing to predict."
        return
    worse = dream > copy + MARGIN * copy.max()
    total, first = len(worse), int(worse.argmax()) + 1
    if not worse.any():
        yield f"the dream is never worse than keeping the last value ({total} steps)."
    elif worse.all():
        words = "the model has not learned yet how this changes. Train longer."
        yield f"from step 1 on the dream is worse than keeping the last value: {words}"
    elif worse[first - 1 :].all():
        yield f"the dream is worse than keeping the last value from step {first} on."
    else:
        yield f"the dream is worse than keeping the last value at {worse.sum()} of {total} steps, first at {first}."
    if other.mean() <= dream.mean() * (1 + MARGIN) and dream.mean() > MARGIN * copy.max():
        yield "the actions of another sequence do as well: the model ignores its actions, or they do not matter here."


def table(found: dict[str, Any], study: Study) -> Table:
    """Mean errors at the first, a middle and the last step of the dream."""
    horizon = study.valid.shape[1]
    steps = sorted({1, (horizon + 1) // 2, horizon})
    out = Table(title=f"error after 1 to {horizon} dreamed steps, {len(study.valid)} start points")
    for name in ("", "step", *LABELS.values()):
        out.add_column(name, justify="right" if name else "left")
    for name, (unit, curves) in found.items():
        means = [mean_and_band(error)[0] for error in curves.values()]
        for step in steps:
            label = f"{name}, {unit}" if step == 1 else ""
            out.add_row(label, str(step), *(f"{mean[step - 1]:.4f}" for mean in means))
        out.add_section()
    return out
