# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""De^3 with a fixed sigma as a smoothed classifier: its certificates, and its predictions with abstention.

The statistics are those of [`transformers_nim.model.certification`]. This module draws the noise, and refuses settings
in which the prediction depends on the image by other ways than the noisy image: no certificate would hold for them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .certification import Certificate, CountVotes, SmoothedPrediction, certify, predict
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
)


def certifiable_sigma(config: NIMConfig, sigma: SigmaSpec | str | None = FROM_CONFIG) -> float:
    """The noise scale of a smoothed classifier, or an error that says why there is none.

    Args:
        config: Of the model.
        sigma: A number greater than 0 in units of 0..255 pixels, a constant distribution, or `"config"` for
            `config.defense_sigma`.

    Raises:
        ValueError: The model's output depends on more than image plus noise, or sigma is off, 0 or random.
    """
    if config.norm_pix_loss and config.patch_statistics == "input":
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
    return float(distribution.value)


class SmoothingMixin:
    """Methods of a classifier that denoises: [`certify`] and [`predict_smoothed`]."""

    config: Any

    def classify_noisy(
        self, noisy_pixel_values: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Of the class that this is mixed into: outputs, logits and denoised images of images that are noisy."""
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
        """Classifies images by a vote under noise, and certifies how far each answer holds (arXiv 1902.02918).

        An answer is proven for every perturbation, of the image that the model is given, with an L2 norm below the
        radius: with probability `1 - alpha` over the noise that is drawn here, the smoothed classifier (the class that
        one-draw predictions at this sigma choose most often) gives the same answer there.

        Args:
            pixel_values: Images as [`NIMImageProcessor`] makes them, shape `(batch, channels, height, width)`.
            sigma: Scale of the noise, a number greater than 0 in units of 0..255 pixels, or `"config"` for
                `config.defense_sigma`, if that is constant. The literature's 0.12, 0.25, 0.5 and 1.0 are 30.6, 63.75,
                127.5 and 255. No radius exceeds about 3.2 sigma with 10 000 draws, so 3.2 * sigma / 255.
            n0: Noise draws of each image that choose its class.
            n: Noise draws of each image that bound the radius. 100 000 is customary in published tables.
            alpha: Probability of a wrong certificate, for each image.
            sequential: Whether to stop early, at a slightly smaller radius; see
                [`~transformers_nim.model.certification.certify`].
            radius_tolerance: With `sequential`: radius to give away for an early stop, an L2 norm of pixels in [0, 1].
            target_radius: With `sequential`: radius with which to be content, likewise.
            generator: Source of the noise, one for the batch or one per image. An image's noise depends on it alone,
                and not on `max_batch_size` or on the rest of the batch. Without it the global generator is used.
            interpolate_pos_encoding: Whether to accept other image sizes than the configured one.
            max_batch_size: How many noisy images pass through the network at once; 256 by default, on a
                CPU 64.
            on_pass: Called after every forward pass with its number of noisy images, for progress bars.

        Returns:
            A [`Certificate`] for each image. Radii are L2 norms of pixels in [0, 1].

        Raises:
            ValueError: The model or sigma is such that no certificate would hold, the model is in train mode, or an
                argument is out of range.
            FloatingPointError: The model returned logits that are not numbers.
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
        """Classifies images by a vote under noise, and abstains where the vote is too close (arXiv 1902.02918).

        The answer to give where a certificate was promised: it is the smoothed classifier's with probability
        `1 - alpha`, so a perturbation within a certified radius changes it with a probability of at most alpha. (It
        can still make it abstain.)

        Args:
            pixel_values: Images as [`NIMImageProcessor`] makes them, shape `(batch, channels, height, width)`.
            sigma: As for [`~NIMForRobustImageClassification.certify`].
            n: Noise draws of each image.
            alpha: Probability of a wrong answer, for each image.
            generator: As for [`~NIMForRobustImageClassification.certify`], and so are the following.
            interpolate_pos_encoding: Whether to accept other image sizes than the configured one.
            max_batch_size: How many noisy images pass through the network at once; 256 by default, on a
                CPU 64.
            on_pass: Called after every forward pass with its number of noisy images.

        Returns:
            A [`SmoothedPrediction`] for each image.

        Raises:
            ValueError, FloatingPointError, ImportError: As [`~NIMForRobustImageClassification.certify`].
        """
        value, voters = self._voters(pixel_values, sigma, generator, interpolate_pos_encoding, max_batch_size, on_pass)
        return [predict(count_votes, value, n, alpha) for count_votes in voters]

    def _voters(
        self, pixel_values, sigma, generator, interpolate_pos_encoding, max_batch_size, on_pass
    ) -> tuple[float, list[CountVotes]]:
        """Sigma, and for each image the function that counts votes."""
        value = certifiable_sigma(self.config, sigma)
        # A part of it is enough: batch normalization in train mode mixes the draws.
        if any(module.training for module in self.modules()):  # type: ignore[attr-defined]
            raise ValueError("nothing can be certified in train mode, where dropout applies; call model.eval()")
        check_image_shape(self.config, pixel_values, interpolate_pos_encoding)
        batch_size = default_batch_size(pixel_values.device) if max_batch_size is None else max_batch_size
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"max_batch_size must be an int of at least 1, got {max_batch_size!r}")
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
        """A function that counts the votes of one image under as many draws of noise as it is asked for.

        One generator gives the draws one after the other, over all calls. So those that choose the class and those
        that bound its probability are independent, and draw number i is the same whatever the batch size.
        """

        @torch.no_grad()
        def count_votes(num_draws: int) -> np.ndarray:
            counts = torch.zeros(self.config.num_labels, dtype=torch.int64, device=image.device)
            for start in range(0, num_draws, batch_size):
                num = min(batch_size, num_draws - start)
                device = image.device if generator is None else generator.device
                noise = torch.empty((num, *image.shape), dtype=torch.float32, device=device)
                for draw in noise:
                    # One by one: a generator fills a larger tensor with other numbers.
                    draw.normal_(generator=generator)
                sigmas = torch.full((num,), sigma, dtype=torch.float32, device=image.device)
                noisy = add_noise(image.unsqueeze(0), sigmas, noise.to(image.device), self.config.image_std)
                _, logits, _ = self.classify_noisy(noisy, sigmas, None, image.dtype, interpolate_pos_encoding)
                if not bool(logits.isfinite().all()):
                    raise FloatingPointError(
                        f"the model returned logits that are infinite or no numbers, in {logits.dtype}; votes need"
                        " numbers: try float32 or bfloat16, and check the weights"
                    )
                counts += torch.bincount(logits.argmax(dim=-1), minlength=self.config.num_labels)
                if on_pass is not None:
                    on_pass(num)
            return counts.cpu().numpy()

        return count_votes


__all__ = ["SmoothingMixin"]
