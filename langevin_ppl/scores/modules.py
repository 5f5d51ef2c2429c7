"""Neural networks in Equinox: the only file that imports it."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import Linear

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.scores.networks import Conditioning

__all__ = ["ResidualMLP", "UNet"]

LOWEST, HIGHEST = 0.5, 32.0
"""Angular frequencies of the features of the noise level, a quarter of the log of the noise: the
highest has a period of 0.8 in that log, which is finer than denoisers change."""

MAX_GROUPS = 8
"""Groups of a group normalisation at most."""


def features(noise_level: Array, count: int) -> Array:
    """Sines and cosines of the noise level, ``[count]``."""
    frequencies = jnp.geomspace(LOWEST, HIGHEST, count // 2, dtype=noise_level.dtype)
    angles = frequencies * noise_level
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class Context(eqx.Module):
    """Noise level and condition, as one vector ``[width]``."""

    first: Linear
    second: Linear
    table: Array | None
    """Embeddings of the labels and, last, of no label."""
    linear: Linear | None
    null: Array | None
    """Stands for a vector that is not given."""
    count: int = eqx.field(static=True)

    def __init__(self, rng_key: PRNGKey, count: int, width: int, conditioning: Conditioning | None):
        keys = jax.random.split(rng_key, 4)
        self.count = count
        self.first = Linear(count, width, key=keys[0])
        self.second = Linear(width, width, key=keys[1])
        self.table = self.linear = self.null = None
        if conditioning is not None and conditioning.num_classes is not None:
            self.table = jax.random.normal(keys[2], (conditioning.num_classes + 1, width))
        elif conditioning is not None:
            self.linear = Linear(math.prod(conditioning.shape), width, key=keys[2])
            self.null = jax.random.normal(keys[3], (width,))

    def __call__(self, noise_level: Array, condition: Any) -> Array:
        hidden = jax.nn.silu(self.first(features(noise_level, self.count)))
        context = self.second(hidden)
        if self.table is not None:
            if not jnp.issubdtype(jnp.result_type(condition), jnp.integer):
                raise TypeError(
                    f"condition: expected an integer, the label, got {jnp.result_type(condition)}."
                )
            # A label that does not exist gives NaN instead of a neighbour's embedding.
            known = (condition >= -1) & (condition < len(self.table) - 1)
            row = jnp.where(known, condition, len(self.table))
            context += self.table.at[row].get(mode="fill", fill_value=jnp.nan)
        if self.linear is not None and self.null is not None:
            vector = jnp.ravel(condition).astype(noise_level.dtype)
            absent = jnp.all(jnp.isnan(vector))
            # Zeros inside, because the gradient of a NaN that is not chosen is NaN.
            given = self.linear(jnp.where(absent, 0.0, vector))
            context += jnp.where(absent, self.null, given)
        return jax.nn.silu(context)


def _zeroed(layer: Any) -> Any:
    """Layer whose output is zero at first: the network then predicts as for Gaussian data."""
    return jax.tree.map(jnp.zeros_like, layer)


def _normalised(x: Array) -> Array:
    """Numbers with mean 0 and variance 1."""
    centred = x - jnp.mean(x)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2) + 1e-6)


class MLPBlock(eqx.Module):
    """Residual block whose normalised input is scaled and shifted by the context."""

    modulate: Linear
    first: Linear
    second: Linear

    def __init__(self, rng_key: PRNGKey, width: int):
        keys = jax.random.split(rng_key, 3)
        self.modulate = Linear(width, 2 * width, key=keys[0])
        self.first = Linear(width, width, key=keys[1])
        self.second = Linear(width, width, key=keys[2])

    def __call__(self, x: Array, context: Array) -> Array:
        scale, shift = jnp.split(self.modulate(context), 2)
        hidden = jax.nn.silu(self.first(_normalised(x) * (1.0 + scale) + shift))
        return x + self.second(hidden)


class ResidualMLP(eqx.Module):
    """Residual network on the numbers of an event, whatever its shape."""

    context: Context
    first: Linear
    blocks: tuple[MLPBlock, ...]
    last: Linear

    def __init__(
        self,
        rng_key: PRNGKey,
        event_shape: tuple[int, ...],
        conditioning: Conditioning | None,
        *,
        width: int,
        depth: int,
        time_features: int,
    ):
        keys = jax.random.split(rng_key, depth + 3)
        size = math.prod(event_shape)
        self.context = Context(keys[0], time_features, width, conditioning)
        self.first = Linear(size, width, key=keys[1])
        self.blocks = tuple(MLPBlock(key, width) for key in keys[3:])
        self.last = _zeroed(Linear(width, size, key=keys[2]))

    def __call__(self, u: Array, noise_level: Array, condition: Any = None) -> Array:
        """Output for one event, of its shape."""
        context = self.context(noise_level, condition)
        x = self.first(jnp.ravel(u))
        for block in self.blocks:
            x = block(x, context)
        return self.last(jax.nn.silu(x)).reshape(u.shape)


def _by_convolution(stride: int, x: Array, weight: Array) -> Array:
    pad = weight.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x[None],
        weight,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]


def _by_patches(stride: int, x: Array, weight: Array) -> Array:
    """Product of matrices: a convolution in a loop takes XLA 10 to 30 times as long on CPUs."""
    size, pad = weight.shape[0], weight.shape[0] // 2
    height, width = x.shape[:2]
    padded = jnp.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    shifts = [
        padded[i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifts, axis=-1) @ weight.reshape(-1, weight.shape[-1])


class Conv(eqx.Module):
    """Convolution with channels last."""

    weight: Array
    bias: Array
    stride: int = eqx.field(static=True)

    def __init__(self, rng_key: PRNGKey, fan_in: int, fan_out: int, size: int, stride: int = 1):
        bound = 1.0 / math.sqrt(fan_in * size**2)
        shape = (size, size, fan_in, fan_out)
        self.weight = jax.random.uniform(rng_key, shape, minval=-bound, maxval=bound)
        self.bias = jnp.zeros(fan_out)
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        by_patches = functools.partial(_by_patches, self.stride)
        by_convolution = functools.partial(_by_convolution, self.stride)
        product = jax.lax.platform_dependent(x, self.weight, cpu=by_patches, default=by_convolution)
        return product + self.bias


class GroupNorm(eqx.Module):
    """Normalisation over groups of channels of one event."""

    scale: Array
    shift: Array
    groups: int = eqx.field(static=True)

    def __init__(self, channels: int):
        self.scale, self.shift = jnp.ones(channels), jnp.zeros(channels)
        self.groups = math.gcd(channels, MAX_GROUPS)

    def __call__(self, x: Array) -> Array:
        grouped = x.reshape(-1, self.groups, x.shape[-1] // self.groups)
        centred = grouped - jnp.mean(grouped, axis=(0, 2), keepdims=True)
        square = jnp.mean(centred**2, axis=(0, 2), keepdims=True)
        return (centred * jax.lax.rsqrt(square + 1e-6)).reshape(x.shape) * self.scale + self.shift


class ConvBlock(eqx.Module):
    """Residual block of two convolutions, with the context between them."""

    norms: tuple[GroupNorm, GroupNorm]
    convs: tuple[Conv, Conv]
    modulate: Linear
    skip: Conv | None

    def __init__(self, rng_key: PRNGKey, fan_in: int, fan_out: int, width: int):
        keys = jax.random.split(rng_key, 4)
        self.norms = GroupNorm(fan_in), GroupNorm(fan_out)
        self.convs = Conv(keys[0], fan_in, fan_out, 3), Conv(keys[1], fan_out, fan_out, 3)
        self.modulate = Linear(width, 2 * fan_out, key=keys[2])
        self.skip = None if fan_in == fan_out else Conv(keys[3], fan_in, fan_out, 1)

    def __call__(self, x: Array, context: Array) -> Array:
        scale, shift = jnp.split(self.modulate(context), 2)
        hidden = self.convs[0](jax.nn.silu(self.norms[0](x)))
        hidden = self.norms[1](hidden) * (1.0 + scale) + shift
        hidden = self.convs[1](jax.nn.silu(hidden))
        return hidden + (x if self.skip is None else self.skip(x))


class UNet(eqx.Module):
    """Down to half the size at every level, and up again with what was there on the way."""

    context: Context
    first: Conv
    down: tuple[tuple[ConvBlock, Conv], ...]
    middle: ConvBlock
    up: tuple[ConvBlock, ...]
    norm: GroupNorm
    last: Conv

    def __init__(
        self,
        rng_key: PRNGKey,
        event_shape: tuple[int, ...],
        conditioning: Conditioning | None,
        *,
        channels: tuple[int, ...],
        width: int,
        time_features: int,
    ):
        levels = len(channels)
        keys = jax.random.split(rng_key, 3 * levels + 4)
        size = event_shape[0] if len(event_shape) == 3 else 1
        self.context = Context(keys[0], time_features, width, conditioning)
        self.first = Conv(keys[1], size, channels[0], 3)
        self.down = tuple(
            (
                ConvBlock(keys[4 + i], here, here, width),
                Conv(keys[4 + levels + i], here, next_, 3, 2),
            )
            for i, (here, next_) in enumerate(zip(channels[:-1], channels[1:], strict=True))
        )
        self.middle = ConvBlock(keys[2], channels[-1], channels[-1], width)
        self.up = tuple(
            ConvBlock(keys[4 + 2 * levels + i], channels[i] + channels[i + 1], channels[i], width)
            for i in reversed(range(levels - 1))
        )
        self.norm = GroupNorm(channels[0])
        self.last = _zeroed(Conv(keys[3], channels[0], size, 3))

    def __call__(self, u: Array, noise_level: Array, condition: Any = None) -> Array:
        """Output for one event, of its shape."""
        context = self.context(noise_level, condition)
        x = self.first(u[..., None] if u.ndim == 2 else jnp.moveaxis(u, 0, -1))
        passed = []
        for block, smaller in self.down:
            x = block(x, context)
            passed.append(x)
            x = smaller(x)
        x = self.middle(x, context)
        for block in self.up:
            before = passed.pop()
            height, width = before.shape[:2]
            larger = jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)[:height, :width]
            x = block(jnp.concatenate([larger, before], axis=-1), context)
        x = self.last(jax.nn.silu(self.norm(x)))
        return x[..., 0] if u.ndim == 2 else jnp.moveaxis(x, -1, 0)
