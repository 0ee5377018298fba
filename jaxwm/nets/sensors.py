"""What a sensor is to a network, by its dtype, and the loss of reconstructing it (Hafner et al. 2023, appendix B).

- uint8 `[H, W, C]` ("image"): x / 255 - 0.5 through convolutions; reconstructed with squared error;
- bool, any rank ("binary"): as 0/1 numbers through the MLP; reconstructed as independent Bernoullis;
- float32, rank 0 to 2 ("vector"): symlog through the MLP; reconstructed with squared error in symlog space."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm.distributions import symexp, symlog
from jaxwm.types import RESERVED, Array


def sensors(obs: Any) -> dict[str, Any]:
    """An observation (or its spec) as a dict without the reserved keys; a bare array gets the name "obs"."""
    if not isinstance(obs, Mapping):  # flax freezes the dicts among a module's attributes
        return {"obs": obs}
    return {name: obs[name] for name in sorted(obs) if name not in RESERVED}


MASK = "legal_actions"


def with_mask(obs: Any) -> Any:
    """An observation (or its spec) in which the action mask is a sensor like the others, called `MASK`: for systems
    that predict it."""
    if not isinstance(obs, Mapping) or "legal" not in obs or RESERVED.keys() >= obs.keys():
        return obs
    return {MASK if name == "legal" else name: x for name, x in obs.items()}


LONGEST = 4095  # Numbers in a vector; where there are more they are those of an image.


def kind(spec: jax.ShapeDtypeStruct) -> str:
    """Find out whether a sensor is an "image", "binary" or a "vector"; ValueError for anything else."""
    if spec.dtype == jnp.bool_:
        return "binary"
    if spec.dtype == jnp.uint8 and len(spec.shape) == 3:
        return "image"
    if spec.dtype == jnp.float32 and len(spec.shape) < 3 and math.prod(spec.shape) <= LONGEST:
        return "vector"
    if spec.dtype == jnp.float32:
        raise ValueError(
            f"observations of dtype float32 and shape {spec.shape} look like images, which are seen as uint8 "
            "[H, W, C] only: give numbers from 0 to 255 as uint8, small grids as bool planes"
        )
    raise ValueError(
        f"no encoder for observations of dtype {spec.dtype} and shape {spec.shape}: give images as uint8 [H, W, C], "
        "flags and one-hot classes as bool, numbers as float32"
    )


def kinds(obs: Any) -> dict[str, str]:
    """`{sensor: kind}` of an observation spec; ValueError, which names the sensor, where no encoder sees it."""
    found = {name: _kind(name, spec) for name, spec in sensors(obs).items()}
    if not found:
        raise ValueError("the observation has no sensor besides the reserved keys " + ", ".join(RESERVED))
    images = {name: sensors(obs)[name].shape for name, what in found.items() if what == "image"}
    for name, (height, width, _) in images.items():
        if height % 16 or width % 16 or not (3 <= height // 16 <= 16 and 3 <= width // 16 <= 16):
            raise ValueError(
                f"the sensor {name!r}: images are halved four times: height and width must be multiples of 16 between "
                f"48 and 256, got {height} x {width}; set the environment's image size (64 is usual) or give small "
                "grids as bool planes"
            )
    if len({shape[:2] for shape in images.values()}) > 1:
        raise ValueError(f"all image sensors must have one height and width, got {images}")
    return found


def _kind(name: str, spec: jax.ShapeDtypeStruct) -> str:
    try:
        return kind(spec)
    except ValueError as error:
        raise ValueError(f"the sensor {name!r}: {error}") from None


def flat(x: Array, spec: jax.ShapeDtypeStruct) -> Array:
    """Join the axes of one sensor: `[..., *spec.shape] -> [..., size]`."""
    return x.reshape(*x.shape[: x.ndim - len(spec.shape)], math.prod(spec.shape))


def check_vectors(system: str, name: str, spec: Any) -> None:
    """ValueError unless an observation spec (of the environment `name`) has float vectors only, at least one."""
    wrong = [sensor for sensor, leaf in sensors(spec).items() if kind(leaf) != "vector"]
    if wrong or not sensors(spec):
        advice = "take an environment's vector observations"
        raise ValueError(f"{system} sees vectors of floats; {name} observes {spec}: {advice}")


def width(spec: Any) -> int:
    """Numbers of an observation, all sensors together."""
    return sum(math.prod(leaf.shape) for leaf in sensors(spec).values())


def joined(spec: Any, obs: Any) -> Array:
    """All sensors side by side, `[..., width(spec)]`."""
    given = sensors(obs)
    return jnp.concatenate([flat(given[name], leaf) for name, leaf in sensors(spec).items()], -1)


def parted(spec: Any, vector: Array) -> Any:
    """The inverse of `joined`, without the reserved keys."""
    out, start = {}, 0
    for name, leaf in sensors(spec).items():
        size = math.prod(leaf.shape)
        out[name] = vector[..., start : start + size].reshape(*vector.shape[:-1], *leaf.shape)
        start += size
    return out if isinstance(spec, Mapping) else out["obs"]


def rows(obs: Any, spec: Any) -> tuple[tuple[int, ...], dict[str, Array]]:
    """The leading axes of an observation, and its sensors with these joined: `[R, *shape]`."""
    obs, spec = sensors(obs), sensors(spec)
    first = next(iter(obs))
    lead = obs[first].shape[: obs[first].ndim - len(spec[first].shape)]
    return lead, {name: x.reshape(-1, *spec[name].shape) for name, x in obs.items()}


def reconstruction_loss(obs: Any, prediction: dict[str, Array], spec: Any) -> dict[str, Array]:
    """`{sensor: [...]}`: negative log-likelihood up to constants, summed over the entries of each predicted sensor."""
    obs, spec, which = sensors(obs), sensors(spec), kinds(spec)
    losses = {}
    for name, guess in prediction.items():
        target, what = obs[name], which[name]
        if what == "binary":
            error = jax.nn.softplus(guess) - guess * target
        else:
            target = target.astype(jnp.float32) / 255 if what == "image" else symlog(target)
            error = jnp.square(guess - target)
        losses[name] = flat(error, spec[name]).sum(-1)
    return losses


def observation(prediction: dict[str, Array], spec: Any) -> Any:
    """What the decoder says, in the dtype and structure of the environment's observation (without reserved keys)."""
    out = {}
    for name, what in kinds(spec).items():
        guess = prediction[name]
        if what == "image":
            out[name] = jnp.clip(jnp.round(guess * 255), 0, 255).astype(jnp.uint8)
        else:
            out[name] = guess > 0 if what == "binary" else symexp(guess)
    return out if isinstance(spec, Mapping) else out["obs"]
