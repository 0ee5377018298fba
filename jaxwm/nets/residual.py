"""A tower of residual blocks on planes, for board games, grids and images made small."""

from functools import partial

import flax.linen as nn

from jaxwm.learning.pieces import Routes
from jaxwm.nets.layers import Conv, Linear, NormSilu, RMSNorm
from jaxwm.types import Array

ROUTES = Routes(own_gradients=True)


class Tower(nn.Module):
    """`[B, H, W, C] -> [B, H, W, channels]`: a convolution, then `blocks` of two with a way around them.
    He et al. (2016), with RMS norm, not batch norm, so that acting and learning see the same network, and SiLU."""

    channels: int
    blocks: int
    kernel: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = partial(Conv, self.channels, self.kernel, routes=ROUTES)
        x = NormSilu(name="act")(conv(name="stem")(x))
        for i in range(self.blocks):
            y = NormSilu(name=f"act{i}")(conv(name=f"in{i}")(x))
            y = RMSNorm(name=f"norm{i}")(conv(name=f"out{i}")(y))
            x = nn.silu(x + y)
        return x


class Cut(nn.Module):
    """Planes through `channels` of them, flat: `[B, H, W, C] -> [B, H * W * channels]`, what a head starts with."""

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = NormSilu(name="act")(Linear(x.shape[-1], self.channels, name="cut")(x))
        return y.reshape(len(y), -1)
