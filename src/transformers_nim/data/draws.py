# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Draw the noise of training images in the DataLoader's workers.

Each image has one stream of random numbers, on the CPU, seeded by run, epoch and image. So noise is the same on every
device, for every batch size and number of workers or processes, and a training step draws nothing itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..attacks.geometry import NORMS, Ball
from ..model.checks_nim import check_counts
from ..model.noise import SigmaDistribution, checked_sigma


# Function from the shape of an image and its generator to random numbers by name.
Draw = Callable[[torch.Size, torch.Generator], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class NoiseDraw:
    """Sigma, noise and start of an attack for one image.

    The order of draws is fixed: sigma, noise, start, and sigma and noise of the attack. So the first are the same with
    and without an attack.

    Attributes:
        sigma: Distribution of sigma, in units of 0..255 pixels; None for images without noise.
        num_draws: Draws of noise per image. All have the image's sigma.
        attack_norm: `"Linf"` or `"L2"`, the norm of the attack; None without an attack.
        for_attack: Whether the attack gets another sigma and noise than the training pass.

    Raises:
        ValueError: A number is below 1, or the norm is unknown.
    """

    sigma: SigmaDistribution | None
    num_draws: int = 1
    attack_norm: str | None = None
    for_attack: bool = False

    def __post_init__(self) -> None:
        check_counts(num_draws=self.num_draws)
        if self.attack_norm not in (None, *NORMS):
            raise ValueError(f"attack_norm must be one of {NORMS} or None, got {self.attack_norm!r}")

    def __call__(self, shape: torch.Size, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw for one image.

        Args:
            shape: Shape of the image, `(channels, height, width)`.
            generator: Generator of the image.

        Returns:
            `sigma` of shape `()` and `pixel_noise` of shape `(num_draws, channels, height, width)`, standard normal,
            if there is noise; `attack_start` in the shape of the image, a uniform point of the ball of radius 1, if
            there is an attack; `attack_sigma` and `attack_noise` if the attack gets noise of its own.

        Raises:
            ValueError: The distribution drew a sigma that is negative, undefined or infinite.
        """
        drawn = self._noise("sigma", "pixel_noise", shape, generator)
        if self.attack_norm is not None:
            drawn["attack_start"] = unit_ball_point(self.attack_norm, shape, generator)
            if self.for_attack:
                drawn |= self._noise("attack_sigma", "attack_noise", shape, generator)
        return drawn

    def _noise(
        self, sigma_name: str, noise_name: str, shape: torch.Size, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        if self.sigma is None:
            return {}
        drawn = self.sigma.sample(1, generator=generator)[0]
        # Here, because sigma is not looked at where an accelerator has it.
        sigma = checked_sigma(drawn, f"{self.sigma} drew a sigma that is negative, undefined or infinite")
        return {sigma_name: sigma, noise_name: torch.randn((self.num_draws, *shape), generator=generator)}


def unit_ball_point(norm: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Draw a uniform point of the ball of radius 1 around zero.

    Args:
        norm: `"Linf"` or `"L2"`.
        shape: Shape of the point.
        generator: Source of randomness.
    """
    if norm == "Linf":
        return 2 * torch.rand(shape, generator=generator) - 1
    direction = Ball(norm, 1.0).steepest(torch.randn((1, *shape), generator=generator))[0]
    return direction * torch.rand((), generator=generator) ** (1 / shape.numel())
