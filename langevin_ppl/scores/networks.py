"""What a network is: its kind and sizes, from which it is built for the shape of the data."""

import dataclasses
import importlib
from typing import Any, ClassVar

from langevin_ppl.base import PRNGKey, check_counts

__all__ = ["Conditioning", "NetworkSpec", "named", "network_named", "residual_mlp", "unet"]


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What a network is conditioned on.

    Attributes
    ----------
    shape
        Shape of one condition; ``()`` for a label.
    num_classes
        Number of labels; None for a vector.
    """

    shape: tuple[int, ...] = ()
    num_classes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Kind and sizes of a network: frozen, hashable, and what a file says of it.

    Made by `residual_mlp` and `unet`.
    """

    time_features: int = 32

    module: ClassVar[str]
    """Name of its class among `langevin_ppl.scores.modules`."""

    def __post_init__(self) -> None:
        check_counts(2, time_features=self.time_features)
        if self.time_features % 2:
            raise ValueError(
                "time_features: expected an even integer, sines and cosines, got "
                f"{self.time_features}."
            )

    def build(
        self,
        rng_key: PRNGKey,
        event_shape: tuple[int, ...],
        conditioning: Conditioning | None = None,
    ) -> Any:
        """Network with random weights, ``network(u, noise_level, condition)`` for one event.

        Its last layer is zero.

        Raises
        ------
        ValueError
            If it is not for events of this shape.
        ImportError
            If Equinox is not installed.
        """
        self.check(event_shape)
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return getattr(_modules(), self.module)(rng_key, event_shape, conditioning, **sizes)

    def check(self, event_shape: tuple[int, ...]) -> None:
        """Refuse events that it is not for."""


def _modules() -> Any:
    try:
        return importlib.import_module("langevin_ppl.scores.modules")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "equinox":
            raise
        raise ImportError(
            "network: Equinox is not installed. Install it by pip install 'langevin-ppl[diffusion]'"
            ", or pass a network of your own."
        ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualMLPSpec(NetworkSpec):
    """Sizes of a residual network; see `residual_mlp`."""

    width: int = 256
    depth: int = 3

    module: ClassVar[str] = "ResidualMLP"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(1, width=self.width, depth=self.depth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetSpec(NetworkSpec):
    """Sizes of a U-Net; see `unet`."""

    channels: tuple[int, ...] = (32, 64)
    width: int = 128

    module: ClassVar[str] = "UNet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(1, width=self.width)
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels:
            raise ValueError("channels: expected one number for every level, got none.")
        for count in self.channels:
            check_counts(1, channels=count)

    def check(self, event_shape: tuple[int, ...]) -> None:
        """Refuse events that are not images."""
        if len(event_shape) not in (2, 3):
            raise ValueError(
                "network: a U-Net is for images, [height, width] or [channel, height, width], got "
                f"events of shape {event_shape}. Use langevin_ppl.scores.residual_mlp()."
            )


def residual_mlp(width: int = 256, depth: int = 3, *, time_features: int = 32) -> NetworkSpec:
    """Residual network on the numbers of an event, whatever its shape.

    Blocks of two layers whose normalised input is scaled and shifted by the noise level and the
    condition.

    Parameters
    ----------
    width
        Numbers in a hidden layer.
    depth
        Number of blocks.
    time_features
        Sines and cosines of the noise level.

    References
    ----------
    Perez et al., *FiLM: visual reasoning with a general conditioning layer*, 2018,
    arXiv:1709.07871; Peebles, Xie, *Scalable diffusion models with transformers*, 2023,
    arXiv:2212.09748, for their use in diffusions.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> spec = lp.scores.residual_mlp(width=16, depth=1)
    >>> network = spec.build(jax.random.key(0), event_shape=(2,))
    >>> network(jnp.ones(2), jnp.array(0.0), None)  # the last layer is zero at first
    Array([0., 0.], dtype=float32)
    """
    return ResidualMLPSpec(width=width, depth=depth, time_features=time_features)


def unet(
    channels: tuple[int, ...] = (32, 64), *, width: int = 128, time_features: int = 32
) -> NetworkSpec:
    """Small U-Net for images, ``[height, width]`` or ``[channel, height, width]`` of any size.

    Parameters
    ----------
    channels
        Channels at every level, each of half the height and width of the one before.
    width
        Numbers that stand for noise level and condition.
    time_features
        Sines and cosines of the noise level.

    References
    ----------
    Ronneberger, Fischer, Brox, *U-Net*, 2015, arXiv:1505.04597; in diffusions Ho, Jain, Abbeel,
    2020, arXiv:2006.11239.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> spec = lp.scores.unet(channels=(4, 8))
    >>> network = spec.build(jax.random.key(0), event_shape=(8, 8))
    >>> network(jnp.ones((8, 8)), jnp.array(0.0), None).shape
    (8, 8)
    """
    return UNetSpec(channels=channels, width=width, time_features=time_features)


_SPECS = {"residual_mlp": ResidualMLPSpec, "unet": UNetSpec}


def named(spec: NetworkSpec) -> dict[str, Any]:
    """Kind and sizes of a network, as JSON holds them."""
    kind = next(name for name, cls in _SPECS.items() if type(spec) is cls)
    return {"name": kind, **dataclasses.asdict(spec)}


def network_named(record: dict[str, Any]) -> NetworkSpec:
    """Spec of which `named` says this; looked up among those of this file."""
    sizes = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
    del sizes["name"]
    return _SPECS[record["name"]](**sizes)
