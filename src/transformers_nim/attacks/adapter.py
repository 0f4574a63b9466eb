# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""A transformers image classifier as attacks want it: pixels in [0, 1] in, logits out."""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from ..model.checks_nim import check_counts, check_vote
from ..model.noise import FROM_CONFIG, ConstantSigma, Sigma, parse_sigma, split_generator
from ..model.outputs_nim import combine_draws
from ..model.pixels_nim import normalize, to_pixels
from .randomness import Generators


GRADIENTS = ("full", "bpda", "classifier")
AUTOCAST_DTYPES = (None, torch.bfloat16, torch.float16)


class PixelClassifier(nn.Module):
    """Maps pixels in [0, 1] to logits, through the normalization and a transformers image classifier.

    Perturbations are measured in pixels, so attacks act before the normalization. Mode, device, parameters and
    gradients of the model are left alone. Gradients flow to the pixels only. The noise of the defense comes from a
    generator of this object, so the global random state is left alone too.

    Attacks of other libraries take it as their model. Images must have the size that the model takes.

    Args:
        model: An image classification model in eval mode, for example a [`NIMForRobustImageClassification`], a ViT or
            a ConvNeXt.
        image_mean: Per-channel mean of the normalization; by default that of `image_processor` or of the config.
        image_std: Per-channel standard deviation of the normalization; found in the same way.
        image_processor: The model's image processor, whose normalization is taken.
        sigma: Noise scale of the defense in units of 0..255 pixels; `None` switches the defense off. By default the
            config's. This and the next four arguments are for models with a defense.
        num_samples: Noise draws that a prediction combines; the config's by default.
        vote: How it combines them, `"mean"` or `"majority"`; the config's by default. A majority has no gradient of
            its own, and gets that of the mean.
        gradient: `"full"` differentiates through noise, denoiser and classifier. `"bpda"` makes the same predictions,
            but differentiates noise and denoiser as the identity (Athalye et al., arXiv 1802.00420). `"classifier"` is
            the classifier without the defense, on which the NIM paper computes its gray-box attacks.
        fixed_noise: Whether all images see the same noise in every call, which makes the defense deterministic. The
            strongest attacker knows it; the accuracy that this costs is due to randomness alone.
        seed: Seed of the noise.
        autocast_dtype: `None` computes in the model's dtype. With `torch.bfloat16` (or `torch.float16`, in which small
            gradients vanish) the model runs under `torch.autocast`, which is approximate and on many devices faster.
            Use it to search for adversarial images, and judge them with `None`, as rounding can change an answer.
            Noise and gradients stay float32, and logits are returned in float32.
        forward_kwargs: Further arguments of the model's forward.

    Raises:
        ValueError: Mean or standard deviation cannot be found, the model is in train mode (where another sigma
            applies), its forward does not know an argument, or a choice is unknown or does not fit the model.

    Example:

    ```python
    >>> import torch
    >>> from transformers_nim import NIMConfig, NIMForRobustImageClassification
    >>> from transformers_nim.attacks import PixelClassifier

    >>> model = NIMForRobustImageClassification(NIMConfig.from_size("tiny-patch4-32", num_labels=10)).eval()
    >>> classifier = PixelClassifier(model, sigma=25, fixed_noise=True)
    >>> pixels = torch.rand(2, 3, 32, 32)
    >>> torch.equal(classifier(pixels), classifier(pixels))
    True
    ```"""

    def __init__(
        self,
        model: PreTrainedModel,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        *,
        image_processor: Any = None,
        sigma: Sigma | str = FROM_CONFIG,
        num_samples: int | None = None,
        vote: str | None = None,
        gradient: str = "full",
        fixed_noise: bool = False,
        seed: int = 0,
        autocast_dtype: torch.dtype | None = None,
        **forward_kwargs: Any,
    ):
        super().__init__()
        _check_mode(model)
        known = inspect.signature(model.forward).parameters.keys()
        if not (isinstance(sigma, str) and sigma == FROM_CONFIG):
            forward_kwargs["sigma"] = sigma
        chosen = {"num_samples": num_samples, "vote": vote}
        forward_kwargs |= {name: value for name, value in chosen.items() if value is not None}
        # transformers models swallow unknown arguments: a misspelled sigma would go unnoticed.
        unknown = forward_kwargs.keys() - known
        ours = forward_kwargs.keys() & {"generator", "pixel_noise", "output_draws", "labels"}
        if unknown or ours:
            raise ValueError(
                f"{type(model).__name__}.forward cannot be given {sorted(unknown or ours)} here"
                + (": noise is drawn anew in every call; see fixed_noise and seed" if ours else "")
            )
        self._has_defense = {"sigma", "generator", "output_draws"} <= known
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {list(GRADIENTS)}, got {gradient!r}")
        if gradient != "full" and not self._has_defense:
            raise ValueError(f"{type(model).__name__} has no defense to leave out of a gradient; take gradient='full'")
        check_counts(num_samples=num_samples)
        check_vote(vote)
        if autocast_dtype not in AUTOCAST_DTYPES:
            raise ValueError(
                f"autocast_dtype must be one of {list(AUTOCAST_DTYPES)}, got {autocast_dtype!r}; leave it out to"
                " compute in the model's dtype"
            )
        self.image_mean, self.image_std = _normalization(model, image_mean, image_std, image_processor)
        self.gradient, self.fixed_noise, self.seed = gradient, fixed_noise, seed
        self.autocast_dtype = autocast_dtype
        self.forward_kwargs = forward_kwargs
        # A list hides the model from .train() and .to() of this module.
        self._model = [model]
        self._generator: torch.Generator | None = None
        # Other libraries ask for the device of the first parameter.
        self.where_the_model_is = nn.Parameter(torch.empty(0, device=model.device), requires_grad=False)
        self.eval()
        self._is_noisy  # noqa: B018  (refuses a wrong sigma now, not in the first call)

    @property
    def is_deterministic(self) -> bool:
        """Tell whether equal pixels always get equal logits."""
        return self.fixed_noise or not self._is_noisy

    @property
    def num_samples(self) -> int:
        """Noise draws that a prediction combines; 1 for a model that has none."""
        return self.forward_kwargs.get("num_samples", getattr(self._model[0].config, "num_samples", 1))

    @property
    def patch_shape(self) -> tuple[int, int] | None:
        """Height and width of the model's patches in pixels; `None` if it has none."""
        config = self._model[0].config
        size = getattr(config, "patch_shape", None) or getattr(config, "patch_size", None)
        return (size, size) if isinstance(size, int) else None if size is None else tuple(size)

    @property
    def _sigma(self) -> Any:
        # None if no defense is applied.
        if not self._has_defense or self.gradient == "classifier":
            return None
        return self.forward_kwargs.get("sigma", self._model[0].config.defense_sigma)

    @property
    def _is_noisy(self) -> bool:
        sigma = self._sigma
        if sigma is None or isinstance(sigma, (list, tuple, Tensor)):
            return sigma is not None
        return parse_sigma(sigma) != ConstantSigma(0)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Map pixels in [0, 1] to the model's input."""
        return normalize(pixels, self.image_mean, self.image_std)

    def to_pixels(self, pixel_values: Tensor) -> Tensor:
        """Map the model's input to pixels; the inverse of [`~PixelClassifier.normalize`]."""
        return to_pixels(pixel_values, self.image_mean, self.image_std)

    def forward(self, pixels: Tensor, generators: Generators | None = None) -> Tensor:
        """Return the model's predictions, with noise draws combined as the model combines them.

        Args:
            pixels: Images in [0, 1], shape `(batch, channels, height, width)`.
            generators: One source of noise per image; this object's own by default. Ignored if the noise is fixed.

        Returns:
            Logits, shape `(batch, classes)`.
        """
        return self._combine(self._logits(pixels, self.num_samples, generators))

    def draw_logits(self, pixels: Tensor, num_draws: int, generators: Generators | None = None) -> Tensor:
        """Return the logits of several predictions under fresh noise, in one pass.

        Args:
            pixels: Images in [0, 1], shape `(batch, channels, height, width)`.
            num_draws: Predictions per image. Each combines `num_samples` noise draws of its own.
            generators: One source of noise per image; this object's own by default.

        Returns:
            Logits, shape `(batch, num_draws, classes)`. A deterministic model gives its prediction as the only draw.
        """
        if self.is_deterministic:
            return self(pixels, generators).unsqueeze(1)
        total = num_draws * self.num_samples
        logits = self._logits(pixels, total, generators, max_batch_size=len(pixels) * total)
        return self._combine(logits.unflatten(1, (num_draws, -1)).flatten(0, 1)).unflatten(0, (-1, num_draws))

    def _combine(self, logits: Tensor) -> Tensor:
        """Combine draws `(batch, num_samples, classes)` into one prediction, with the gradient of the mean vote."""
        vote = self.forward_kwargs.get("vote", getattr(self._model[0].config, "vote", "mean"))
        combined = combine_draws(logits, vote)
        if vote == "mean" or not combined.requires_grad:
            return combined
        mean = combine_draws(logits, "mean")
        return combined.detach() + (mean - mean.detach())

    def _logits(self, pixels: Tensor, num_draws: int, generators: Generators | None, **kwargs: Any) -> Tensor:
        _check_mode(self._model[0])
        half = self.autocast_dtype
        context: AbstractContextManager = nullcontext() if half is None else torch.autocast(pixels.device.type, half)
        with _frozen(self._model[0]), context:
            logits = self._draws(self.normalize(pixels), num_draws, generators, **kwargs)
        # In half precision, sums over classes and draws would be rounded once more.
        return logits if half is None else logits.to(torch.float32)

    def _draws(self, pixel_values: Tensor, num_draws: int, generators: Generators | None, **kwargs: Any) -> Tensor:
        model = self._model[0]
        if self._sigma is None:
            off = {"sigma": None} if self._has_defense else {}
            return model(pixel_values, **{**self.forward_kwargs, **off}).logits.unsqueeze(1)
        kwargs |= self.forward_kwargs
        kwargs["num_samples"] = num_draws if self._is_noisy else 1
        kwargs |= {"generator": self._generators(pixel_values, generators), "output_draws": True}
        if self.gradient == "full":
            return model(pixel_values, **kwargs).draw_logits
        with torch.no_grad():
            purified = model(pixel_values, **kwargs).denoised_pixel_values
        repeated = pixel_values.unsqueeze(1).expand_as(purified)
        logits = model(_Identity.apply(repeated, purified).flatten(0, 1), sigma=None).logits
        return logits.unflatten(0, (len(pixel_values), -1))

    def _generators(self, pixels: Tensor, generators: Generators | None) -> Generators:
        device, num_images = pixels.device, len(pixels)
        if self.fixed_noise:
            return [torch.Generator(device).manual_seed(self.seed) for _ in range(num_images)]
        if generators is not None:
            return generators
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return split_generator(self._generator, num_images)


class _Identity(torch.autograd.Function):
    """Returns its second argument; its gradient goes to the first argument unchanged."""

    @staticmethod
    def forward(ctx: Any, pixel_values: Tensor, purified: Tensor) -> Tensor:
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Build no graph for gradients of parameters in a `with` block."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _check_mode(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the model is in train mode, where dropout and another sigma apply; call model.eval()")


def _normalization(
    model: PreTrainedModel, mean: Sequence[float] | None, std: Sequence[float] | None, processor: Any
) -> tuple[list[float], list[float]]:
    source = model.config
    if processor is not None:
        factor = getattr(processor, "rescale_factor", 1 / 255)
        if not getattr(processor, "do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ValueError(
                f"{type(processor).__name__} does not map 0..255 to pixels in [0, 1] (do_rescale="
                f"{getattr(processor, 'do_rescale', True)}, rescale_factor={factor}); pass image_mean and image_std"
                " for pixels in [0, 1]"
            )
        source = processor
        if not getattr(processor, "do_normalize", True):
            channels = getattr(model.config, "num_channels", 3)
            mean, std = mean or [0.0] * channels, std or [1.0] * channels
    mean = mean if mean is not None else getattr(source, "image_mean", None)
    std = std if std is not None else getattr(source, "image_std", None)
    if mean is None or std is None:
        raise ValueError(
            f"the config of {type(model).__name__} does not hold the normalization of its images; pass image_mean"
            " and image_std of its image processor, or image_processor"
        )
    return list(mean), list(std)
