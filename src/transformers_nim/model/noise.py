# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Distributions of the noise scale sigma, and the functions that draw and add noise.

sigma is the standard deviation of the Gaussian noise in units of 0..255 pixels. Images inside a model are normalized
(`(pixels - mean) / std` per channel, pixels in [0, 1]), so noise added there has the standard deviation
`sigma / 255 / std`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, ClassVar, TypeVar

import torch
from transformers.utils import logging

from .pixels_nim import per_channel


logger = logging.get_logger(__name__)

# The value of a `sigma` argument that means "as the config says", because None means "defense off".
FROM_CONFIG = "config"

# Far above any noise, and low enough that no square of a noisy pixel overflows.
_MAXIMUM = 1e6

# One generator for the whole batch, or one per image, or a tensor with a seed per image.
Generators = torch.Generator | Sequence[torch.Generator] | torch.Tensor

# Class and names of its parameters, by type. Names are stored because torch.compile cannot trace `fields`.
_DISTRIBUTIONS: dict[str, tuple[type["SigmaDistribution"], list[str]]] = {}
DistributionT = TypeVar("DistributionT", bound=type["SigmaDistribution"])


class SigmaDistribution(ABC):
    """A distribution of sigma in units of 0..255 pixels.

    A subclass is a frozen dataclass whose fields are numbers. It has a class attribute `type` and is registered with
    [`register_sigma_distribution`]. Configs hold it as the mapping `{"type": type, **fields}`.
    """

    type: ClassVar[str]

    @abstractmethod
    def sample(
        self, num: int, *, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Draw `num` values of sigma as a float32 tensor of shape `(num,)`."""

    @property
    @abstractmethod
    def mean(self) -> float:
        """Return the expected sigma."""

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping from which [`parse_sigma`] makes this distribution again."""
        numbers = asdict(self)  # type: ignore[call-overload]
        # JSON holds no numbers of NumPy or torch.
        numbers = {name: value.item() if hasattr(value, "item") else value for name, value in numbers.items()}
        return {"type": self.type, **numbers}


def register_sigma_distribution(cls: DistributionT) -> DistributionT:
    """Make a [`SigmaDistribution`] available in configs under its `type` (a class decorator).

    Args:
        cls: A frozen dataclass derived from [`SigmaDistribution`].

    Returns:
        The class itself.

    Raises:
        ValueError: Another class already uses this `type`.
    """
    known, _ = _DISTRIBUTIONS.get(cls.type, (cls, None))
    if known.__qualname__ != cls.__qualname__:
        raise ValueError(f"the sigma distribution type {cls.type!r} is already used by {known.__qualname__}")
    _DISTRIBUTIONS[cls.type] = cls, [field.name for field in fields(cls)]  # type: ignore[arg-type]
    return cls


def _check_number(where: str, value: Any, minimum: float = 0.0, exclusive: bool = False) -> None:
    # Comparisons only (NaN fails them too), because torch.compile makes a changing number symbolic.
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if (minimum < number <= _MAXIMUM) if exclusive else (minimum <= number <= _MAXIMUM):
        return
    if number > _MAXIMUM:
        raise ValueError(f"{where} must be finite and at most {_MAXIMUM:g}, got {value!r}")
    bound = f"a finite number {'greater than' if exclusive else 'of at least'} {minimum:g}"
    raise ValueError(f"{where} must be {bound}, got {value!r}")


@register_sigma_distribution
@dataclass(frozen=True)
class ConstantSigma(SigmaDistribution):
    """A constant sigma. `value` is in units of 0..255 pixels; 0 denoises without adding noise."""

    type: ClassVar[str] = "constant"
    value: float

    def __post_init__(self) -> None:
        _check_number("value of a constant sigma", self.value)

    def sample(self, num, *, device=None, generator=None):
        return torch.full((num,), float(self.value), dtype=torch.float32, device=device)

    @property
    def mean(self) -> float:
        return float(self.value)


@register_sigma_distribution
@dataclass(frozen=True)
class GammaSigma(SigmaDistribution):
    """A gamma distribution with mean `concentration * scale` and s.d. `sqrt(concentration) * scale`.

    The paper's pretraining noise has concentration 25 and scale 3: mean 75 and s.d. 15 in units of 0..255 pixels. In
    `torch.distributions.Gamma`, a scale of 3 is a *rate* of 1/3.
    """

    type: ClassVar[str] = "gamma"
    concentration: float
    scale: float

    def __post_init__(self) -> None:
        _check_number("concentration of a gamma sigma", self.concentration, exclusive=True)
        _check_number("scale of a gamma sigma", self.scale, exclusive=True)

    def sample(self, num, *, device=None, generator=None):
        # torch.distributions takes no generator and cannot be traced by torch.compile(fullgraph=True).
        shape = torch.full((num,), float(self.concentration), dtype=torch.float32, device=device)
        return torch._standard_gamma(shape, generator=generator) * self.scale

    @property
    def mean(self) -> float:
        return float(self.concentration * self.scale)


@register_sigma_distribution
@dataclass(frozen=True)
class UniformSigma(SigmaDistribution):
    """A uniform distribution on `[low, high)`, in units of 0..255 pixels."""

    type: ClassVar[str] = "uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        _check_number("low of a uniform sigma", self.low)
        _check_number("high of a uniform sigma", self.high, minimum=self.low)

    def sample(self, num, *, device=None, generator=None):
        return self.low + (self.high - self.low) * torch.rand(
            num, dtype=torch.float32, device=device, generator=generator
        )

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2


# What a config accepts for sigma, and what a forward does.
SigmaSpec = float | int | Mapping[str, Any] | SigmaDistribution
Sigma = torch.Tensor | SigmaSpec | None


def parse_sigma(spec: SigmaSpec) -> SigmaDistribution:
    """Return the distribution that a config or an argument describes.

    Args:
        spec: A finite number of at least 0 (a constant sigma), a mapping with the key `type` and the parameters of
            that distribution, such as `{"type": "uniform", "low": 0, "high": 30}`, or a [`SigmaDistribution`]. Units
            of 0..255 pixels.

    Raises:
        ValueError: The type is unknown, or a parameter is missing, unknown or out of range.
    """
    if isinstance(spec, SigmaDistribution):
        return spec
    if isinstance(spec, Mapping):
        kind = spec.get("type")
        if not isinstance(kind, str) or kind not in _DISTRIBUTIONS:
            raise ValueError(f"unknown sigma distribution {kind!r} in {dict(spec)!r}; known: {sorted(_DISTRIBUTIONS)}")
        cls, wanted = _DISTRIBUTIONS[kind]
        given = {key: value for key, value in spec.items() if key != "type"}
        if sorted(given) != sorted(wanted):
            raise ValueError(f"a {kind!r} sigma takes exactly the parameters {wanted}, got {sorted(given)}")
        return cls(**given)
    _check_number("sigma", spec)
    return ConstantSigma(spec)


def warn_of_sigma(sigma: SigmaSpec) -> None:
    """Warn of a sigma that looks as if it was given for pixels in [0, 1].

    Args:
        sigma: What [`parse_sigma`] takes, in units of 0..255 pixels.
    """
    mean = parse_sigma(sigma).mean
    if 0 < mean <= 1:
        logger.warning_once(
            f"sigma {mean:g} is in units of 0..255 pixels, where it is hardly any noise; if {mean:g} was meant for"
            f" pixels in [0, 1], pass {255 * mean:g}"
        )


def check_sigma_tensor(sigma: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Check a tensor of sigmas, one for the batch or one per image, and expand it to `(batch_size,)`.

    Raises:
        ValueError: The shape is wrong, or a value is negative, NaN or infinite. Values are looked at on the CPU only,
            see [`checked_sigma`].
    """
    if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] not in (1, batch_size)):
        raise ValueError(f"sigma must be one number or one per image ({batch_size}), got shape {tuple(sigma.shape)}")
    sigma = checked_sigma(sigma.to(torch.float32), "sigma must be finite and at least 0 (units of 0..255 pixels)")
    return sigma.expand(batch_size)


def checked_sigma(sigma: torch.Tensor, message: str) -> torch.Tensor:
    """Return sigmas in which no value is negative, undefined or infinite, unless it is NaN.

    On an accelerator such values become NaN, and with them all that is computed from them: a look at the values would
    make every forward pass wait for the accelerator.

    Args:
        sigma: Sigmas of any shape.
        message: What is said of others, before their values.

    Raises:
        ValueError: A value on the CPU is negative, NaN or infinite. Nothing is checked while `torch.compile` or
            `torch.export` traces.
    """
    if torch.compiler.is_compiling():
        return sigma
    valid = torch.isfinite(sigma) & (sigma >= 0)
    if not _on_host(sigma):
        return torch.where(valid, sigma, math.nan)
    if not bool(valid.all()):
        raise ValueError(f"{message}, got {sigma.tolist()}")
    return sigma


def _on_host(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"


def resolve_sigma(sigma: Sigma | str, default: Sigma, batch_size: int) -> torch.Tensor | SigmaDistribution | None:
    """Return what the `sigma` argument of a forward means: a value per image, a distribution, or None (defense off).

    Raises:
        ValueError: It is none of these, or out of range.
    """
    if isinstance(sigma, str):
        if sigma != FROM_CONFIG:
            raise ValueError(
                f"sigma must be a number, a tensor, a distribution, None or {FROM_CONFIG!r}, got {sigma!r}"
            )
        sigma = default
    if sigma is None:
        return None
    if isinstance(sigma, (list, tuple)):
        sigma = torch.tensor(sigma, dtype=torch.float32)
    if isinstance(sigma, torch.Tensor):
        return check_sigma_tensor(sigma, batch_size)
    if not torch.compiler.is_compiling():
        warn_of_sigma(sigma)
    return parse_sigma(sigma)


def split_generator(generator: Generators, batch_size: int) -> list[torch.Generator]:
    """Return one generator per image.

    A single generator gives each image a seed. So an image's noise depends on the generator's state and on the image's
    position, not on the rest of its batch: two batches of 4 in a row see the same noise as one batch of 8. A sequence
    of generators is returned as a list. Seeds are those of generators on the CPU, so that noise is the same on every
    device.

    Raises:
        ValueError: The number of generators or seeds is not the batch size, or seeds are no integers.
    """
    if isinstance(generator, torch.Generator):
        # One by one, because a vectorized draw of n seeds need not agree with n draws of one.
        device = generator.device
        seeds = [torch.randint(2**63 - 1, (), generator=generator, device=device).item() for _ in range(batch_size)]
        return [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]
    if isinstance(generator, torch.Tensor):
        if generator.is_floating_point() or generator.shape != (batch_size,):
            raise ValueError(
                f"seeds must be integers of shape ({batch_size},), one per image, got {generator.dtype} of shape"
                f" {tuple(generator.shape)}"
            )
        return [torch.Generator().manual_seed(seed) for seed in generator.tolist()]
    generators = list(generator)
    if len(generators) != batch_size:
        raise ValueError(f"got {len(generators)} generators for a batch of {batch_size} images; pass one per image")
    return generators


def default_batch_size(device: torch.device) -> int:
    """Return how many noisy images pass through the network at once when an image has several draws.

    It is smaller on a CPU, where activations should fit the cache (benchmarks/README.md has figures).
    """
    return 64 if device.type == "cpu" else 256


def draw_noise(
    pixel_values: torch.Tensor,
    sigma: torch.Tensor | SigmaDistribution,
    num_samples: int = 1,
    pixel_noise: torch.Tensor | None = None,
    generator: Generators | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw `num_samples` pairs of sigma and standard normal noise for each image.

    Args:
        pixel_values: Images of shape `(batch, channels, height, width)`; only shape and device matter.
        sigma: One sigma per image, shape `(batch,)`, the same for all its draws, or a distribution from which each
            draw takes its own.
        num_samples: Draws per image.
        pixel_noise: Noise to use instead of drawing it, shape `(batch, num_samples, channels, height, width)`, or
            `(batch, channels, height, width)` for a single draw.
        generator: Source of randomness for the whole batch, or one per image, or a seed per image; see
            [`split_generator`]. The global generator of the images' device by default. It is left alone if sigma is
            the constant 0, as no noise is needed.

    Returns:
        sigma of shape `(batch, num_samples)` and noise of shape `(batch, num_samples, channels, height, width)`, both
        float32 on the images' device.

    Raises:
        ValueError: `pixel_noise` has the wrong shape, or there are more or fewer generators than images.
    """
    batch_size, device = pixel_values.shape[0], pixel_values.device
    shape = (num_samples, *pixel_values.shape[1:])

    if pixel_noise is not None:
        if num_samples == 1 and pixel_noise.shape == pixel_values.shape:
            pixel_noise = pixel_noise.unsqueeze(1)
        if pixel_noise.shape != (batch_size, *shape):
            raise ValueError(
                f"pixel_noise must have the shape {(batch_size, *shape)} (one draw per image may leave out the second"
                f" dimension), got {tuple(pixel_noise.shape)}"
            )
        pixel_noise = pixel_noise.to(device=device, dtype=torch.float32)

    if generator is not None:
        sigmas, noises = [], []
        for image_generator in split_generator(generator, batch_size):
            own = image_generator.device
            if isinstance(sigma, SigmaDistribution):
                sigmas.append(sigma.sample(num_samples, device=own, generator=image_generator))
            if pixel_noise is None:
                noises.append(torch.randn(shape, dtype=torch.float32, device=own, generator=image_generator))
        drawn = torch.stack(sigmas).to(device) if sigmas else None
        pixel_noise = torch.stack(noises).to(device) if noises else pixel_noise
    else:
        drawn = None
        if isinstance(sigma, SigmaDistribution):
            drawn = sigma.sample(batch_size * num_samples, device=device).view(batch_size, num_samples)
        if pixel_noise is None:
            draw = torch.zeros if sigma == ConstantSigma(0) else torch.randn
            pixel_noise = draw((batch_size, *shape), dtype=torch.float32, device=device)

    if isinstance(sigma, SigmaDistribution):
        assert drawn is not None
        drawn = checked_sigma(drawn, f"{sigma} drew a sigma that is negative, undefined or infinite")
    else:
        drawn = sigma.to(device=device, dtype=torch.float32).unsqueeze(1).expand(batch_size, num_samples)
    assert pixel_noise is not None
    return drawn, pixel_noise


def add_noise(
    pixel_values: torch.Tensor, sigma: torch.Tensor, pixel_noise: torch.Tensor, image_std: Sequence[float]
) -> torch.Tensor:
    """Add Gaussian noise to normalized images: `x + noise * sigma / 255 / image_std`, as in arXiv 2302.01056.

    Args:
        pixel_values: Normalized images of shape `(..., channels, height, width)`.
        sigma: Noise scale in units of 0..255 pixels, shape `(...)`.
        pixel_noise: Standard normal noise that broadcasts with `pixel_values`.
        image_std: The standard deviation of each channel by which the pixels were divided.

    Returns:
        Float32 images. They are not clamped: clamped noise is not Gaussian, and certificates would not hold.
    """
    pixel_values = pixel_values.to(torch.float32)
    std = per_channel(image_std, pixel_values)
    return pixel_values + pixel_noise * (sigma[..., None, None, None] / 255 / std)
