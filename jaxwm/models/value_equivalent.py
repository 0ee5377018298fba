"""The model of MuZero and its kin: it predicts rewards, values and policies, and nothing else (Grimm et al. 2020).

R rows (any leading axes joined), A width of an action, K bins of a support. A latent is `[R, D]`, or planes
`[R, H, W, C]` where the networks are residual; it is scaled to [0, 1]."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxwm.distributions import TwoHot, sg, twohot
from jaxwm.nets.encoders import Decoder, Encoder, max_pool
from jaxwm.nets.layers import MLP, Conv, Head, Linear, NormSilu
from jaxwm.nets.residual import ROUTES, Cut, Tower
from jaxwm.nets.sensors import kinds, sensors
from jaxwm.types import Array

EPS = 0.001  # Weight of the linear term of `squash`, without which large values could not be told apart.


def squash(x: Array) -> Array:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x (Pohlen et al. 2018); MuZero's preprint misprints the last term."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + EPS * x


def unsquash(y: Array) -> Array:
    """The inverse of `squash`.
    With u = sqrt(|x| + 1) it is the root of EPS u^2 + u - (1 + EPS + |y|) = 0, written so that nothing cancels."""
    target = 1 + EPS + jnp.abs(y)
    u = 2 * target / (1 + jnp.sqrt(1 + 4 * EPS * target))
    return jnp.sign(y) * (u * u - 1)


class Support(NamedTuple):
    """Scalars as a softmax over `count` bins from -`bound` to `bound` of their squashed value."""

    bound: float
    count: int

    @property
    def bins(self) -> Array:
        """`[K]`, exactly symmetric around 0."""
        return (jnp.arange(self.count) - (self.count - 1) / 2) * (2 * self.bound / (self.count - 1))

    def mean(self, logits: Array) -> Array:
        """The scalar `[...]` that `logits [..., K]` mean: `unsquash` of the expectation."""
        return unsquash(TwoHot(logits, self.bins).mean())

    def loss(self, logits: Array, target: Array) -> Array:
        """Cross-entropy `[...]` with the two bins around `target [...]`."""
        return TwoHot(logits, self.bins).loss(twohot(squash(target), self.bins))


class Memory(NamedTuple):
    """What a value prefix needs: LSTM state, the prefix so far `[R]`, steps since the last reset int32 `[R]`."""

    lstm: tuple[Array, Array]
    prefix: Array
    since: Array


def scaled(latent: Array) -> Array:
    """A latent scaled to [0, 1], each row (each plane of each row) by its least and greatest entry."""
    axes = tuple(range(1, latent.ndim - 1)) or (-1,)
    low, high = latent.min(axes, keepdims=True), latent.max(axes, keepdims=True)
    return (latent - low) / jnp.maximum(high - low, 1e-5)


SMALL = 10  # Height of planes that residual networks do not halve: 96 becomes 6, as in MuZero; a grid of 10 stays.


class Half(nn.Module):
    """Planes of half the height and width, through a convolution and a maximum of four cells."""

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return max_pool(NormSilu(name="act")(Conv(self.channels, 3, routes=ROUTES, name="conv")(x)))


class Net(nn.Module):
    """Representation, dynamics and prediction network; projector, value prefix and decoder where asked for."""

    obs: Any
    actions: int  # width of an encoded action
    outputs: dict[str, int]  # of the policy
    support: Support
    residual: bool = False
    width: int = 64  # of a latent: numbers, or channels
    units: int = 64  # of hidden layers, and of the LSTM
    layers: int = 1  # of each MLP; blocks of each tower
    depth: int = 16  # channels of the convolutions for images without residual networks, and of the decoder
    cut: int = 16  # channels before a head of a residual network
    prefix: int = 0  # steps after which a value prefix starts anew; 0: rewards are predicted one by one
    projection: int = 0  # width of the projection that consistency is measured in; 0: none
    decoder: bool = False

    def setup(self):
        self.size = self.width
        if self.residual:
            height, width, _ = next(iter(sensors(self.obs).values())).shape
            halvings = 0
            while height > SMALL:
                height, width, halvings = height // 2, width // 2, halvings + 1
            self.size *= height * width
            self.shrink = [Half(self.width // 2, name=f"half{i}") for i in range(halvings)]
            self.see, self.move = Tower(self.width, self.layers), Tower(self.width, self.layers)
            self.cuts = {name: Cut(self.cut, name=f"cut_{name}") for name in ("reward", "policy", "value")}
        else:
            self.enc = Encoder(self.obs, self.depth, self.units, self.layers)
            self.latent = nn.Dense(self.width)
            self.move = MLP(self.layers + 1, self.units)
            self.change = Linear(self.units, self.width)
        if self.prefix:
            # flax's orthogonal start takes QR factorisations, which on CPUs can wait for each other for ever under vmap
            plain = nn.initializers.lecun_normal()
            self.lstm = nn.OptimizedLSTMCell(self.units, recurrent_kernel_init=plain)
        self.gain = Head({"reward": self.support.count}, 1, self.units, 0.0)
        self.policy = Head(self.outputs, 1, self.units, 0.0)
        self.worth = Head({"value": self.support.count}, 1, self.units, 0.0)
        if self.projection:
            self.project1, self.project2 = MLP(1, self.projection), Linear(self.projection, self.projection)
            self.match1, self.match2 = MLP(1, self.projection // 2), Linear(self.projection // 2, self.projection)
        if self.decoder:
            self.paint = Decoder(self.obs, self.depth, self.units, self.size, 0, max(1, self.layers), act="elu")

    def __call__(self, obs: Any, action: Array) -> Any:
        """Touches every parameter, for `init`: an observation `[R, ...]` and an encoded action `[R, A]`."""
        latent = self.advance(self.represent(obs), action)
        parts = [self.predict(latent), self.reward(latent, self.fresh(len(action)))]
        parts += [self.compare(latent)] if self.projection else []
        return parts + ([self.decode(latent)] if self.decoder else [])

    def represent(self, obs: Any) -> Array:
        """h: an observation `[R, ...]` as a latent. Planes are halved until they are at most `SMALL` high."""
        if not self.residual:
            return scaled(self.latent(self.enc(obs)))
        x = next(iter(sensors(obs).values()))
        x = x / 255.0 - 0.5 if x.dtype == jnp.uint8 else x.astype(jnp.float32)
        for half in self.shrink:
            x = half(x)
        return scaled(self.see(x))

    def advance(self, latent: Array, action: Array) -> Array:
        """g: the latent after an encoded action `[R, A]`."""
        if self.residual:
            planes = jnp.broadcast_to(action[:, None, None, :], (*latent.shape[:-1], action.shape[-1]))
            return scaled(latent + self.move(jnp.concatenate([latent, planes], -1)))
        return scaled(latent + self.change(self.move(jnp.concatenate([latent, action], -1))))

    def fresh(self, rows: int) -> Memory | None:
        """The memory of a value prefix at its start; None without one."""
        if not self.prefix:
            return None
        blank = jnp.zeros((rows, self.units))
        return Memory((blank, blank), jnp.zeros(rows), jnp.zeros(rows, jnp.int32))

    def reward(self, latent: Array, memory: Memory | None) -> tuple[Array, Array, Memory | None]:
        """Logits `[R, K]` of what is predicted, the reward `[R]` of the step into `latent`, the memory behind it.
        Predicted is the reward, or the value prefix: the sum of rewards since the last reset, undiscounted. The reward
        is then the difference of two prefixes, or the prefix itself right after a reset."""
        x = self.cuts["reward"](latent) if self.residual else latent
        if memory is None:
            logits = self.gain(x)["reward"]
            return logits, self.support.mean(logits), None
        lstm, out = self.lstm(memory.lstm, x)
        logits = self.gain(out)["reward"]
        prefix, since = self.support.mean(logits), memory.since + 1
        over = since >= self.prefix
        kept = [jnp.where(over[:, None], 0.0, x) for x in lstm]
        after = Memory((kept[0], kept[1]), jnp.where(over, 0.0, prefix), jnp.where(over, 0, since))
        return logits, prefix - memory.prefix, after

    def predict(self, latent: Array) -> tuple[dict[str, Array], Array]:
        """f: outputs of the policy by name, and the logits `[R, K]` of the value."""
        cut = (lambda name: self.cuts[name](latent)) if self.residual else lambda name: latent
        return self.policy(cut("policy")), self.worth(cut("value"))["value"]

    def projected(self, latent: Array) -> Array:
        """The space in which latents are compared, `[R, projection]`."""
        return self.project2(self.project1(latent.reshape(len(latent), -1)))

    def compare(self, latent: Array) -> Array:
        """What the projection of the observation behind an unrolled latent should be, as SimSiam predicts it."""
        return self.match2(self.match1(self.projected(latent)))

    def decode(self, latent: Array) -> dict[str, Array]:
        """Raw predictions of the sensors (`nets.sensors.observation`), from a latent that gets no gradient."""
        flat = sg(latent).reshape(len(latent), -1)
        return self.paint(flat, flat[:, :0])


def check(obs: Any, residual: bool) -> None:
    """ValueError where an observation does not fit the networks."""
    if not residual:
        kinds(obs)
        return
    shapes = [x.shape for x in sensors(obs).values()]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        found = f"and the observation is {shapes}: take --no-residual"
        raise ValueError(f"residual networks see one image or one set of planes [H, W, C], {found}")


def similarity(guess: Array, target: Array) -> Array:
    """Cosine of `guess` and `target [..., D]`; no gradient goes into the target (Chen & He 2021)."""
    unit = lambda x: x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)  # noqa: E731
    return (unit(guess) * unit(sg(target))).sum(-1)
