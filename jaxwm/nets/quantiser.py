"""Pictures as a few tokens of a vocabulary: the vector-quantised autoencoder, and the search for the nearest code.

van den Oord et al. 2017; Esser et al. 2021 for convolutions and attention; Micheli et al. 2023 for their sizes.

R rows, K tokens of a picture, V codes of the vocabulary, W numbers of a code. A picture is a grid of cells, one token
each, row by row; where a side is no multiple of a cell, zeros are added around it."""

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.distributions import sg
from jaxwm.learning.share import Share
from jaxwm.nets.encoders import max_pool
from jaxwm.nets.layers import Conv, Linear, NormSilu, RMSNorm, weight
from jaxwm.nets.residual import ROUTES, Tower
from jaxwm.nets.sensors import kind, sensors
from jaxwm.types import Array, Key

ATTENTION = (8, 16)  # Heights of planes at which cells attend to each other, as published.
IDLE = 100  # Updates without use after which a code counts as dead.


# --- Pictures ---------------------------------------------------------------------------------------------------------
def picture(obs: Any, who: str) -> tuple[str, jax.ShapeDtypeStruct]:
    """Name and shape of the one sensor of an observation spec. ValueError unless it is an image or planes `[H, W, C]`;
    `who` is the system that asks."""
    found = sensors(obs)
    name, spec = next(iter(found.items()))
    if len(found) > 1 or spec.dtype not in (jnp.uint8, jnp.bool_) or len(spec.shape) != 3:
        raise ValueError(
            f"{who} sees one picture, an image (uint8 [H, W, C]) or 0/1 planes (bool [H, W, C]), and the observation "
            f"is {obs}: take dreamer-v3 for other sensors"
        )
    return name, spec


def as_floats(frame: Array) -> Array:
    """Pictures as numbers in [0, 1]."""
    return frame.astype(jnp.float32) / 255 if frame.dtype == jnp.uint8 else frame.astype(jnp.float32)


def as_frame(painted: Array, spec: Any) -> Array:
    """What a decoder painted `[..., H, W, C]` (see `Tokenizer`) in the dtype of the observation, 8 bits or 0/1."""
    if kind(spec) == "binary":
        return painted > 0
    return jnp.round(255 * jnp.clip(painted, 0, 1)).astype(jnp.uint8)


def reconstruction_error(painted: Array, frame: Array, on_weight: float, squared: bool = False) -> Array:
    """The error of each entry of what a decoder painted: absolute or `squared` for images, cross-entropy for planes,
    `on_weight` times where a cell is on."""
    if frame.dtype == jnp.uint8:
        gap = painted - as_floats(frame)
        return jnp.square(gap) if squared else jnp.abs(gap)
    weight = jnp.where(frame, on_weight, 1.0)
    return weight * (jax.nn.softplus(painted) - painted * frame)


def grid(shape: tuple[int, ...], cell: int) -> tuple[int, int]:
    """Cells of `cell` x `cell` pixels in a picture `[H, W, C]`: rows, columns."""
    return -(-shape[0] // cell), -(-shape[1] // cell)


def padded(frame: Array, cell: int) -> Array:
    """Pictures `[..., H, W, C]` with zeros around them, to whole cells."""
    rows, columns = grid(frame.shape[-3:], cell)
    more = rows * cell - frame.shape[-3], columns * cell - frame.shape[-2]
    return jnp.pad(frame, [(0, 0)] * (frame.ndim - 3) + [(n // 2, n - n // 2) for n in more] + [(0, 0)])


def cropped(frame: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `padded`: pictures `[..., *shape]`."""
    top, left = ((have - want) // 2 for have, want in zip(frame.shape[-3:-1], shape[:2], strict=True))
    return frame[..., top : top + shape[0], left : left + shape[1], :]


def to_cells(frame: Array, cell: int) -> Array:
    """Pictures of whole cells `[R, H, W, C]` as `[R, H / cell, W / cell, cell * cell * C]`."""
    rows, height, width, channels = frame.shape
    x = frame.reshape(rows, height // cell, cell, width // cell, cell, channels)
    return x.swapaxes(2, 3).reshape(rows, height // cell, width // cell, -1)


def from_cells(x: Array, cell: int) -> Array:
    """The inverse of `to_cells`."""
    rows, height, width, size = x.shape
    x = x.reshape(rows, height, width, cell, cell, size // cell**2)
    return x.swapaxes(2, 3).reshape(rows, height * cell, width * cell, -1)


# --- Codes ------------------------------------------------------------------------------------------------------------
def nearest(latents: Array, codebook: Array) -> Array:
    """The nearest code `[...]`, int32, of every vector `[..., W]` in a codebook `[V, W]`, by Euclidean distance."""
    return (jnp.square(codebook).sum(-1) - 2 * latents @ codebook.T).argmin(-1).astype(jnp.int32)


class Quantised(NamedTuple):
    """Latents `[..., W]` as codes of the vocabulary."""

    tokens: Array  # int32 [...]
    latents: Array  # [..., W], as a constant
    codes: Array  # [..., W], whose gradient goes straight through to the latents
    codebook_loss: Array  # mean over all entries, pulls codes towards latents
    commitment_loss: Array  # the same number, pulls latents towards codes


def quantise(latents: Array, codebook: Array) -> Quantised:
    """Vector quantisation (van den Oord et al. 2017, eq. 3), without the weight of the commitment."""
    chex.assert_equal(latents.shape[-1], codebook.shape[-1])
    tokens = nearest(sg(latents), sg(codebook))
    codes = codebook[tokens]
    codebook_loss, commitment_loss = jnp.square(sg(latents) - codes).mean(), jnp.square(latents - sg(codes)).mean()
    return Quantised(tokens, sg(latents), latents + sg(codes - latents), codebook_loss, commitment_loss)


def unit(x: Array) -> Array:
    """Vectors `[..., W]` of length 1."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def cosine_quantise(latents: Array, codebook: Array) -> Quantised:
    """`quantise` by angles: latents and codes are brought to length 1 first (Yu et al. 2022)."""
    return quantise(unit(latents), unit(codebook))


def used(tokens: Array, codes: int) -> Array:
    """Which of the codes occur among the tokens: bool `[V]`."""
    return jnp.zeros(codes, bool).at[tokens.ravel()].set(True)


def revive(codebook: Array, dead: Array, latents: Array, key: Key) -> Array:
    """The codebook `[V, W]` with latents `[R, W]` in place of the codes that are `dead [V]`.
    A latent is drawn as often as it is far, squared, from its nearest code (Arthur & Vassilvitskii 2007): copies of
    common latents would only take turns in standing for them, and a model of tokens would find no rest."""
    gap = jnp.square(latents - codebook[nearest(latents, codebook)]).sum(-1)
    chosen = jax.random.categorical(key, jnp.log(gap + 1e-12), shape=(len(codebook),))
    return jnp.where(dead[:, None], latents[chosen], codebook)


def kept_alive(
    codebook: Array, idle: Array, tokens: Array, latents: Array, limit: int, key: Key, share: Share
) -> tuple[Array, Array, dict[str, Array]]:
    """The codebook `[V, W]` after a batch, with `revive` for codes that were idle for `limit` updates (0: never); for
    how long each code was idle, int32 `[V]`; and the shares of codes that the batch used and that are dead."""
    hit = share.max(used(tokens, len(codebook)).astype(jnp.int32)) > 0
    idle = jnp.where(hit, 0, idle + 1)
    metrics = {"codes/used": hit.mean(dtype=jnp.float32), "codes/dead": (idle >= IDLE).mean(dtype=jnp.float32)}
    if not limit:
        return codebook, idle, metrics
    dead, rows = idle >= limit, share.gather(latents.reshape(-1, latents.shape[-1]))
    return revive(codebook, dead, rows, key), jnp.where(dead, 0, idle), metrics


# --- Networks ---------------------------------------------------------------------------------------------------------
class Mixing(nn.Module):
    """Self-attention among the cells of planes `[R, H, W, C]`, one head, with a way around it."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, flat = x.shape[-1], x.reshape(len(x), -1, 1, x.shape[-1])
        seen = RMSNorm(name="norm")(flat)
        query, key, value = (Linear(width, width, name=name)(seen) for name in ("query", "key", "value"))
        out = Linear(width, width, name="out")(jax.nn.dot_product_attention(query, key, value))
        return x + out.reshape(x.shape)


class Level(nn.Module):
    """Residual blocks at one size, and attention where cells are few: `[R, H, W, C] -> [R, H, W, depth]`."""

    depth: int
    blocks: int
    kernel: int
    attention: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Tower(self.depth, self.blocks, self.kernel, name="tower")(x)
        return Mixing(name="mixing")(x) if self.attention and x.shape[1] in ATTENTION else x


def _symmetric(key: Key, shape: tuple[int, ...]) -> Array:
    """Codes `[V, W]` uniform in +-1 / V."""
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / shape[0]


class Tokenizer(nn.Module):
    """A discrete autoencoder: pictures `[R, H, W, C]` in [0, 1] to latents `[R, K, W]`, and codes to pictures.

    Squares of `patch` pixels are cut out first, and halved `levels` times; a cell is patch * 2^levels pixels. What is
    painted is in 0..1 for images, a logit for 0/1 planes."""

    shape: tuple[int, ...]  # of a picture
    codes: int = 512
    width: int = 512
    depth: int = 64  # channels
    patch: int = 1
    levels: int = 4
    blocks: int = 2  # residual blocks of a level
    kernel: int = 3  # of all convolutions; with 1, cells know nothing of each other
    attention: bool = True

    def setup(self):
        level = lambda name: Level(self.depth, self.blocks, self.kernel, self.attention, name=name)  # noqa: E731
        self.down = [level(f"down{i}") for i in range(self.levels + 1)]
        self.up = [level(f"up{i}") for i in range(self.levels + 1)]
        self.grow = [Conv(self.depth, self.kernel, True, ROUTES, name=f"grow{i}") for i in range(self.levels)]
        self.to_latents, self.from_codes = Linear(self.depth, self.width), Linear(self.width, self.depth)
        self.act = NormSilu()
        self.out = Linear(self.depth, self.patch**2 * self.shape[-1])
        self.codebook = weight(self, "codebook", _symmetric, (self.codes, self.width))

    @property
    def cell(self) -> int:
        """Pixels of a side of what one token stands for."""
        return self.patch * 2**self.levels

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return grid(self.shape, self.cell)

    @property
    def tokens(self) -> int:
        """Tokens of a picture, K."""
        rows, columns = self.grid
        return rows * columns

    def __call__(self, frame: Array) -> tuple[Quantised, Array]:
        """Latents quantised, and what is painted of them."""
        found = self.quantise(frame)
        return found, self.paint(found.codes)

    def quantise(self, frame: Array) -> Quantised:
        """The codes of pictures `[R, H, W, C]`."""
        return quantise(self.latents(frame), self.codebook)

    def latents(self, frame: Array) -> Array:
        """`[R, K, W]` of pictures `[R, H, W, C]`."""
        chex.assert_shape(frame, (None, *self.shape))
        x = to_cells(padded(frame, self.cell), self.patch)
        for i, level in enumerate(self.down):
            x = level(max_pool(x) if i else x)
        return self.to_latents(x).reshape(len(x), self.tokens, self.width)

    def embed(self, tokens: Array) -> Array:
        """Codes `[..., W]` of tokens `[...]`."""
        return self.codebook[tokens]

    def paint(self, codes: Array) -> Array:
        """Pictures `[R, H, W, C]` of codes `[R, K, W]`."""
        x = self.from_codes(codes.reshape(len(codes), *self.grid, self.width))
        for i, level in enumerate(self.up):
            x = level(self.grow[i - 1](x) if i else x)
        return cropped(from_cells(self.out(self.act(x)), self.patch), self.shape)
