# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""De^3 with a fixed sigma as a smoothed classifier: certificates, and predictions that may abstain.

[`transformers_nim.model.certification`] has the statistics. This module draws the noise. It refuses settings in which
a prediction depends on more than the noisy image, because no certificate would hold.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .certification import Certificate, CountVotes, SmoothedPrediction, certify, predict
from .checks_nim import check_counts
from .configuration_nim import NIMConfig
from .layers_nim import check_image_shape
from .noise import (
    FROM_CONFIG,
    ConstantSigma,
    Generators,
    SigmaSpec,
    add_noise,
    default_batch_size,
    parse_sigma,
    split_generator,
    warn_of_sigma,
)


def certifiable_sigma(config: NIMConfig, sigma: SigmaSpec | str | None = FROM_CONFIG) -> float:
    """Return the noise scale of a smoothed classifier in units of 0..255 pixels.

    Args:
        config: Config of the model.
        sigma: A number greater than 0, a constant distribution, or `"config"` for `config.defense_sigma`.

    Raises:
        ValueError: The model's output depends on more than the noisy image, or sigma is off, 0 or random.
    """
    if config.leaks_patch_statistics:
        raise ValueError(
            'nothing can be certified with norm_pix_loss and patch_statistics="input": mean and standard deviation of'
            ' every patch reach the output past the noise. Set model.config.patch_statistics = "noisy" (and measure'
            " the accuracy again: it is another denoiser), or use a model without norm_pix_loss"
        )
    if isinstance(sigma, str):
        if sigma != FROM_CONFIG:
            raise ValueError(f"sigma must be a number greater than 0 or {FROM_CONFIG!r}, got {sigma!r}")
        sigma = config.defense_sigma
    if sigma is None:
        raise ValueError(
            "nothing can be certified with sigma=None, which switches the defense off: there is no noise to smooth the"
            " classifier. Pass a number greater than 0, such as sigma=63.75 (0.25 for pixels in [0, 1])"
        )
    if isinstance(sigma, (torch.Tensor, np.ndarray, list, tuple)):
        raise ValueError(f"one call certifies at one sigma, a number; call it once for each of {sigma!r}")
    distribution = parse_sigma(sigma)  # type: ignore[arg-type]
    if not isinstance(distribution, ConstantSigma):
        raise ValueError(
            f"nothing can be certified with the random sigma {distribution}: the radius is that of Gaussian noise of"
            f" one scale. Pass a number, such as its mean, sigma={distribution.mean:g}"
        )
    if distribution.value == 0:
        raise ValueError(
            "nothing can be certified with sigma=0, which denoises without adding noise. Pass a number greater than 0,"
            " such as sigma=63.75 (0.25 for pixels in [0, 1])"
        )
    warn_of_sigma(distribution)
    return float(distribution.value)


class SmoothingMixin:
    """Smoothed classification for a classifier that denoises."""

    config: Any

    def classify_noisy(
        self, noisy_pixel_values: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Denoise and classify noisy images (implemented by the model)."""
        raise NotImplementedError

    def certify(
        self,
        pixel_values: torch.Tensor,
        sigma: SigmaSpec | str | None = FROM_CONFIG,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        sequential: bool = False,
        radius_tolerance: float = 0.0,
        target_radius: float | None = None,
        generator: Generators | None = None,
        interpolate_pos_encoding: bool = False,
        max_batch_size: int | None = None,
        on_pass: Callable[[int], object] | None = None,
    ) -> list[Certificate]:
        """Classify images by a vote under noise and certify a radius for each answer (arXiv 1902.02918).

        The smoothed classifier answers with the class that one-draw predictions at this sigma choose most often. With
        probability `1 - alpha` over the noise drawn here, its answer is the certificate's label for every
        perturbation of `pixel_values` with an L2 norm below the radius.

        Args:
            pixel_values: Images from [`NIMImageProcessor`], shape `(batch, channels, height, width)`.
            sigma: Scale of the noise, a number greater than 0 in units of 0..255 pixels, or `"config"` for a constant
                `config.defense_sigma`. The literature's 0.12, 0.25, 0.5 and 1.0 are 30.6, 63.75, 127.5 and 255. With
                10 000 draws, no radius exceeds about `3.2 * sigma / 255`.
            n0: Noise draws per image that choose its class.
            n: Noise draws per image that bound the radius. 100 000 is customary in published tables.
            alpha: Probability of a wrong certificate, per image.
            sequential: Whether to stop early, at a slightly smaller radius; see
                [`~transformers_nim.model.certification.certify`].
            radius_tolerance: With `sequential`, the radius to give away for an early stop (L2, pixels in [0, 1]).
            target_radius: With `sequential`, the radius at which to stop (L2, pixels in [0, 1]).
            generator: Source of the noise, one for the batch or one per image. An image's noise does not depend on
                `max_batch_size` or on the rest of the batch. The global generator by default.
            interpolate_pos_encoding: Whether to accept other image sizes than the configured one.
            max_batch_size: Noisy images per pass through the network; by default 256, or 64 on a CPU.
            on_pass: Called after every pass with its number of noisy images, for progress bars.

        Returns:
            A [`Certificate`] per image. Radii are L2 norms of pixels in [0, 1].

        Raises:
            ValueError: No certificate would hold for this model and sigma, the model is in train mode, or an argument
                is out of range.
            FloatingPointError: The model returned logits that are infinite or NaN.
            ImportError: scipy is not installed.

        Example:

        ```python
        >>> import torch
        >>> from transformers_nim import NIMConfig, NIMForRobustImageClassification

        >>> model = NIMForRobustImageClassification(NIMConfig.from_size("tiny-patch4-32", num_labels=10)).eval()
        >>> generator = torch.Generator().manual_seed(0)
        >>> certificates = model.certify(torch.randn(2, 3, 32, 32), sigma=63.75, n0=4, n=16, generator=generator)
        >>> [certificate.num_draws for certificate in certificates]
        [20, 20]
        ```
        """
        value, voters = self._voters(pixel_values, sigma, generator, interpolate_pos_encoding, max_batch_size, on_pass)
        return [
            certify(count_votes, value, n0, n, alpha, sequential, radius_tolerance, target_radius)
            for count_votes in voters
        ]

    def predict_smoothed(
        self,
        pixel_values: torch.Tensor,
        sigma: SigmaSpec | str | None = FROM_CONFIG,
        n: int = 1000,
        alpha: float = 0.001,
        generator: Generators | None = None,
        interpolate_pos_encoding: bool = False,
        max_batch_size: int | None = None,
        on_pass: Callable[[int], object] | None = None,
    ) -> list[SmoothedPrediction]:
        """Classify images by a vote under noise, and abstain if the vote is too close (arXiv 1902.02918).

        Use it for the predictions that certificates are about. With probability `1 - alpha` an answer is the smoothed
        classifier's. So a perturbation within a certified radius changes it with a probability of at most alpha, but
        it can make it abstain.

        Args:
            pixel_values: Images from [`NIMImageProcessor`], shape `(batch, channels, height, width)`.
            n: Noise draws per image.
            alpha: Probability of a wrong answer, per image.
            sigma, generator, interpolate_pos_encoding, max_batch_size, on_pass: As for
                [`~NIMForRobustImageClassification.certify`].

        Returns:
            A [`SmoothedPrediction`] per image.

        Raises:
            ValueError, FloatingPointError, ImportError: As [`~NIMForRobustImageClassification.certify`].
        """
        value, voters = self._voters(pixel_values, sigma, generator, interpolate_pos_encoding, max_batch_size, on_pass)
        return [predict(count_votes, value, n, alpha) for count_votes in voters]

    def _voters(
        self, pixel_values, sigma, generator, interpolate_pos_encoding, max_batch_size, on_pass
    ) -> tuple[float, list[CountVotes]]:
        """Check the arguments and return sigma and the function that counts votes for each image."""
        value = certifiable_sigma(self.config, sigma)
        # All modules, because batch normalization in train mode mixes the draws of a pass.
        if any(module.training for module in self.modules()):  # type: ignore[attr-defined]
            raise ValueError("nothing can be certified in train mode, where dropout applies; call model.eval()")
        check_image_shape(self.config, pixel_values, interpolate_pos_encoding)
        check_counts(max_batch_size=max_batch_size)
        batch_size = default_batch_size(pixel_values.device) if max_batch_size is None else max_batch_size
        generators: list[torch.Generator] | list[None] = [None] * len(pixel_values)
        if generator is not None:
            generators = split_generator(generator, len(pixel_values))
        return value, [
            self._vote_counter(image, value, image_generator, interpolate_pos_encoding, batch_size, on_pass)
            for image, image_generator in zip(pixel_values, generators)
        ]

    def _vote_counter(
        self,
        image: torch.Tensor,
        sigma: float,
        generator: torch.Generator | None,
        interpolate_pos_encoding: bool,
        batch_size: int,
        on_pass: Callable[[int], object] | None,
    ) -> CountVotes:
        """Return a function that counts the votes of one image under a number of noise draws.

        The generator continues over all calls. So draws that choose the class and draws that bound its probability are
        independent, and draw number i does not depend on the batch size.
        """

        @torch.no_grad()
        def count_votes(num_draws: int) -> np.ndarray:
            counts = torch.zeros(self.config.num_labels, dtype=torch.int64, device=image.device)
            for start in range(0, num_draws, batch_size):
                num = min(batch_size, num_draws - start)
                device = image.device if generator is None else generator.device
                noise = torch.empty((num, *image.shape), dtype=torch.float32, device=device)
                for draw in noise:
                    # One by one, because a generator fills a larger tensor with other numbers.
                    draw.normal_(generator=generator)
                sigmas = torch.full((num,), sigma, dtype=torch.float32, device=image.device)
                noisy = add_noise(image.unsqueeze(0), sigmas, noise.to(image.device), self.config.image_std)
                _, logits, _ = self.classify_noisy(noisy, sigmas, None, image.dtype, interpolate_pos_encoding)
                if not bool(logits.isfinite().all()):
                    raise FloatingPointError(
                        f"the model returned logits that are infinite or NaN, in {logits.dtype}; votes need"
                        " numbers: try float32 or bfloat16, and check the weights"
                    )
                counts += torch.bincount(logits.argmax(dim=-1), minlength=self.config.num_labels)
                if on_pass is not None:
                    on_pass(num)
            return counts.cpu().numpy()

        return count_votes


__all__ = ["SmoothingMixin"]
