# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Any image classifier as attacks want it: pixels in [0, 1] in, logits out."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pipelines import Pipeline

from .checks_nim import check_counts, check_vote
from .noise import FROM_CONFIG, ConstantSigma, Sigma, draw_noise, parse_sigma, resolve_sigma, split_generator
from .outputs_nim import combine_draws
from .pixels_nim import normalize, to_pixels


# One source of random numbers per image.
Generators = Sequence[torch.Generator]

GRADIENTS = ("full", "bpda", "classifier")
AUTOCAST_DTYPES = (None, torch.bfloat16, torch.float16)
# Relative difference of two passes that kernels of a GPU may make without any noise.
_ROUNDING = 1e-4
# How often a model is asked whether it draws noise of its own.
_ASKED = 16


def unwrap(model: Any) -> nn.Module:
    """Return the model inside `torch.compile`, `DataParallel`, `DistributedDataParallel` and PEFT, to be looked at."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif hasattr(type(model), "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def takes_sigma(model: Any) -> bool:
    """Tell whether a model, wrapped or not, adds noise of a scale sigma as De^3 does."""
    return {"sigma", "generator", "output_draws"} <= inspect.signature(unwrap(model).forward).parameters.keys()


def device_of(model: nn.Module) -> torch.device:
    """Return where the first weight of a model is; the CPU for one without weights."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def timm_settings(model: Any, image_processor: Any = None) -> Mapping[str, Any]:
    """Return what timm says of a model's input (`mean`, `std`, `input_size`); empty for models of other kinds."""
    config = getattr(model, "config", None)
    for owner, name in (
        (image_processor, "data_config"), (model, "pretrained_cfg"), (model, "default_cfg"), (config, "pretrained_cfg")
    ):  # fmt: skip
        found = getattr(owner, name, None)
        if isinstance(found, Mapping) and "mean" in found:
            return found
    return {}


class PixelClassifier(nn.Module):
    """Maps pixels in [0, 1] to logits, through the normalization and any image classifier.

    Perturbations are measured in pixels, so attacks act before the normalization. Mode, parameters and gradients of
    the model are left alone; `.to(device)` and its kin move the model too. Gradients flow to the pixels only. Noise
    comes from generators, so the global random state is left alone too.

    Attacks of other libraries (torchattacks, Foolbox, ART, RobustBench) take it as their model. Images must have the
    size that the model takes.

    Args:
        model: An image classifier in eval mode: of transformers, of timm, any module that returns logits, or a
            `pipeline("image-classification")`, whose image processor and De^3 options are taken (but not its seed).
            It may be wrapped by `torch.compile`, `DataParallel` or PEFT.
        image_mean: Per-channel mean of the normalization. By default that of `image_processor`, of the config or of
            timm's settings; a module that has none of them takes pixels as they are.
        image_std: Per-channel standard deviation of the normalization; found in the same way.
        image_processor: The model's image processor, whose normalization is taken.
        sigma: Noise scale of the defense in units of 0..255 pixels; `None` switches the defense off. By default the
            config's. This and the next two arguments are for models with a defense.
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
        random: Whether the model draws noise of its own from torch's global generator, as other random defenses do.
            Every prediction is then a draw, seeded by the generators. `False` is taken on trust. By default the first
            call listens, and refuses a model that answers equal pixels differently; see
            [`~PixelClassifier.find_noise`].
        forward_kwargs: Further arguments of the model's forward.

    Raises:
        ValueError: Mean or standard deviation cannot be found, a part of the model is in train mode (where dropout and
            another sigma apply), its forward does not know an argument, or a choice is unknown or does not fit the
            model.

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
        model: nn.Module | Pipeline,
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
        random: bool | None = None,
        **forward_kwargs: Any,
    ):
        super().__init__()
        chosen = {"num_samples": num_samples, "vote": vote}
        forward_kwargs |= {name: value for name, value in chosen.items() if value is not None}
        if not (isinstance(sigma, str) and sigma == FROM_CONFIG):
            forward_kwargs["sigma"] = sigma
        if isinstance(model, Pipeline):
            forward_kwargs = pipeline_options(model) | forward_kwargs
            model, image_processor = model.model, image_processor or model.image_processor
        # A list hides the model from .train() and .parameters() of this module. The second is to be looked at.
        self._model, self._core = [model], [unwrap(model)]
        _check_mode(self._core[0])
        self._has_defense = takes_sigma(model)
        self._check_options(forward_kwargs, gradient, random)
        check_counts(num_samples=num_samples)
        check_vote(vote)
        if autocast_dtype not in AUTOCAST_DTYPES:
            raise ValueError(
                f"autocast_dtype must be one of {list(AUTOCAST_DTYPES)}, got {autocast_dtype!r}; leave it out to"
                " compute in the model's dtype"
            )
        self.image_mean, self.image_std = _normalization(self._core[0], image_mean, image_std, image_processor)
        self.gradient, self.fixed_noise, self.seed, self.random = gradient, fixed_noise, seed, random
        self.autocast_dtype = autocast_dtype
        self.forward_kwargs = forward_kwargs
        self._generator: torch.Generator | None = None
        # Other libraries ask for the device of the first parameter.
        self.where_the_model_is = nn.Parameter(torch.empty(0, device=device_of(model)), requires_grad=False)
        self.eval()
        self._is_noisy  # noqa: B018  (refuses a wrong sigma now, not in the first call)

    def _check_options(self, forward_kwargs: Mapping[str, Any], gradient: str, random: bool | None) -> None:
        name = type(self._core[0]).__name__
        # transformers models swallow unknown arguments: a misspelled sigma would go unnoticed.
        unknown = forward_kwargs.keys() - inspect.signature(self._core[0].forward).parameters.keys()
        ours = forward_kwargs.keys() & {"generator", "pixel_noise", "output_draws", "labels"}
        if unknown or ours:
            raise ValueError(
                f"{name}.forward cannot be given {sorted(unknown or ours)} here"
                + (": noise is drawn anew in every call; see fixed_noise and seed" if ours else "")
            )
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {list(GRADIENTS)}, got {gradient!r}")
        if gradient != "full" and not self._has_defense:
            raise ValueError(f"{name} has no defense to leave out of a gradient; take gradient='full'")
        if random and self._has_defense:
            raise ValueError(f"the noise of {name} has a sigma; leave out random, which is for other random models")

    @property
    def model(self) -> nn.Module:
        """The model as it was given."""
        return self._model[0]

    @property
    def is_deterministic(self) -> bool:
        """Tell whether equal pixels always get equal logits."""
        return self.fixed_noise or not (self.random or self._is_noisy)

    @property
    def _config(self) -> Any:
        return getattr(self._core[0], "config", None)

    @property
    def num_samples(self) -> int:
        """Noise draws that a prediction combines; 1 for a model that has none."""
        return self.forward_kwargs.get("num_samples", getattr(self._config, "num_samples", 1))

    @property
    def num_classes(self) -> int | None:
        """Number of the model's classes; `None` if only its logits tell."""
        return getattr(self._config, "num_labels", None)

    @property
    def patch_shape(self) -> tuple[int, int] | None:
        """Height and width of the model's patches in pixels; `None` if it has none."""
        size = getattr(self._config, "patch_shape", None) or getattr(self._config, "patch_size", None)
        return (size, size) if isinstance(size, int) else None if size is None else tuple(size)

    @property
    def _sigma(self) -> Any:
        # None if no defense is applied.
        if not self._has_defense or self.gradient == "classifier":
            return None
        return self.forward_kwargs.get("sigma", self._config.defense_sigma)

    @property
    def _is_noisy(self) -> bool:
        sigma = self._sigma
        if sigma is None or isinstance(sigma, (list, tuple, Tensor)):
            return sigma is not None
        return parse_sigma(sigma) != ConstantSigma(0)

    def _apply(self, *args: Any, **kwargs: Any) -> "PixelClassifier":
        # What .to(), .cuda() and .half() call.
        self._model[0]._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Map pixels in [0, 1] to the model's input."""
        if self.image_mean is None or self.image_std is None:
            return pixels
        return normalize(pixels, self.image_mean, self.image_std)

    def to_pixels(self, pixel_values: Tensor) -> Tensor:
        """Map the model's input to pixels; the inverse of [`~PixelClassifier.normalize`]."""
        if self.image_mean is None or self.image_std is None:
            return pixel_values
        return to_pixels(pixel_values, self.image_mean, self.image_std)

    def find_noise(self, pixels: Tensor, known: bool = False) -> str | None:
        """Find out whether a model without a sigma draws noise of its own, by asking it 16 times under fixed seeds.

        Noise can be missed: noise that is rare (that of probability p in a whole batch is missed with probability
        `p**16 + (1 - p)**16`), that moves logits by no more than rounding does (1e-4 of the largest), or that only
        other images than these meet.

        Args:
            pixels: A few images in [0, 1], shape `(batch, channels, height, width)`.
            known: Whether the model is known to draw noise, so that only its kind is asked for.

        Returns:
            `None` for equal answers, `"seeded"` if the seed of torch's global generator decides them, `"unseeded"` if
            they differ all the same. The global random state is left as it was, and does not matter.
        """

        def differ(first: Tensor, second: Tensor) -> bool:
            return not torch.allclose(first, second, rtol=_ROUNDING, atol=_ROUNDING * float(first.abs().max()))

        with torch.no_grad(), _frozen(self._model[0]), _forked(pixels.device):
            values = self.normalize(pixels)

            def answer(seed: int) -> Tensor:
                torch.manual_seed(seed)
                return self._answer(values)

            def vary(seeds: Sequence[int]) -> bool:
                first = answer(seeds[0])
                return any(differ(first, answer(seed)) for seed in seeds[1:])

            if not known and not vary(range(_ASKED)):
                return None
            return "unseeded" if vary([0] * _ASKED) else "seeded"

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

    @torch.no_grad()
    def purify(self, pixels: Tensor, generators: Generators | None = None) -> tuple[Tensor, Tensor]:
        """Return what the defense makes of images in the first noise draw of their prediction.

        Args:
            pixels: Images in [0, 1], shape `(batch, channels, height, width)`.
            generators: One source of noise per image; this object's own by default.

        Returns:
            The noisy and the denoised images as pixels, of the images' shape. Noisy ones may leave [0, 1].

        Raises:
            ValueError: The model has no defense, or it is switched off.
        """
        if self._sigma is None:
            raise ValueError(f"{type(self._core[0]).__name__} has no defense, or it is off: nothing is denoised")
        options = {**self.forward_kwargs, "num_samples": self.num_samples if self._is_noisy else 1}
        options |= {"generator": self._generators(pixels, generators), "output_draws": True}
        output = self._noisy_pass(self.normalize(pixels), options)
        return self.to_pixels(output.noisy_pixel_values[:, 0]), self.to_pixels(output.denoised_pixel_values[:, 0])

    def _combine(self, logits: Tensor) -> Tensor:
        """Combine draws `(batch, num_samples, classes)` into one prediction, with the gradient of the mean vote."""
        vote = self.forward_kwargs.get("vote", getattr(self._config, "vote", "mean"))
        combined = combine_draws(logits, vote)
        if vote == "mean" or not combined.requires_grad:
            return combined
        mean = combine_draws(logits, "mean")
        return combined.detach() + (mean - mean.detach())

    def _logits(self, pixels: Tensor, num_draws: int, generators: Generators | None, **kwargs: Any) -> Tensor:
        _check_mode(self._core[0])
        if not len(pixels):
            raise ValueError("the batch holds no images")
        if self.random is None and not self._has_defense:
            self._refuse_noise(pixels[:2].detach())
        half = self.autocast_dtype
        context: AbstractContextManager = nullcontext() if half is None else torch.autocast(pixels.device.type, half)
        with _frozen(self._model[0]), context:
            logits = self._draws(self.normalize(pixels), num_draws, generators, **kwargs)
        # In half precision, sums over classes and draws would be rounded once more.
        return logits if half is None else logits.to(torch.float32)

    def _refuse_noise(self, pixels: Tensor) -> None:
        if self.find_noise(pixels) is not None:
            raise ValueError(
                f"{type(self._core[0]).__name__} gives equal pixels different logits: pass random=True, so that"
                " attacks average over its noise"
            )
        self.random = False

    def _draws(self, pixel_values: Tensor, num_draws: int, generators: Generators | None, **kwargs: Any) -> Tensor:
        if self.random:
            return self._seeded_draws(pixel_values, num_draws, generators)
        if self._sigma is None:
            off = {"sigma": None} if self._has_defense else {}
            return self._answer(pixel_values, **{**self.forward_kwargs, **off}).unsqueeze(1)
        kwargs |= self.forward_kwargs
        kwargs["num_samples"] = num_draws if self._is_noisy else 1
        kwargs |= {"generator": self._generators(pixel_values, generators), "output_draws": True}
        if self.gradient == "full":
            return self._noisy_pass(pixel_values, kwargs).draw_logits
        with torch.no_grad():
            purified = self._noisy_pass(pixel_values, kwargs).denoised_pixel_values
        repeated = pixel_values.unsqueeze(1).expand_as(purified)
        logits = self._answer(_Identity.apply(repeated, purified).flatten(0, 1), sigma=None)
        return logits.unflatten(0, (len(pixel_values), -1))

    def _seeded_draws(self, pixel_values: Tensor, num_draws: int, generators: Generators | None) -> Tensor:
        """Return draws of a model with noise of its own, `(batch, draws, classes)`, seeded by the first generator.

        A pass per draw, because a model may give all images of a batch the same noise.
        """
        with _forked(pixel_values.device):
            if self.fixed_noise:
                # One by one, because an image's noise depends on its place in the batch.
                parts = []
                for image in pixel_values.split(1):
                    torch.manual_seed(self.seed)
                    parts.append(self._answer(image))
                return torch.cat(parts).unsqueeze(1)
            draws = []
            first = self._generators(pixel_values, generators)[0]
            for _ in range(num_draws):
                torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=first, device=first.device)))
                draws.append(self._answer(pixel_values))
        return torch.stack(draws, dim=1)

    def _noisy_pass(self, pixel_values: Tensor, options: dict[str, Any]) -> Any:
        """Return the model's output for every draw, `output_draws` and all."""
        if self._model[0] is self._core[0]:
            return self._call(pixel_values, options)
        # Generators can be neither scattered over GPUs nor compiled; tensors can, one row per draw.
        num_samples, generators = options["num_samples"], options.pop("generator")
        sigma: Any = resolve_sigma(self._sigma, None, len(pixel_values))
        drawn, noise = draw_noise(pixel_values, sigma, num_samples, None, generators)
        options |= {"sigma": drawn.flatten(), "pixel_noise": noise.flatten(0, 1), "num_samples": 1}
        output = self._call(pixel_values.repeat_interleave(num_samples, dim=0), options)
        for name in ("draw_logits", "noisy_pixel_values", "denoised_pixel_values"):
            output[name] = output[name].squeeze(1).unflatten(0, (-1, num_samples))
        return output

    def _answer(self, pixel_values: Tensor, **options: Any) -> Tensor:
        """Return the model's logits, `(batch, classes)`."""
        output = self._call(pixel_values, options)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(pixel_values):
            what = f"logits of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(output).__name__
            raise ValueError(
                f"{type(self._core[0]).__name__} returns {what} for {len(pixel_values)} images; a classifier must"
                " return logits of shape (batch, classes), or an output that holds them as logits"
            )
        return logits

    def _call(self, pixel_values: Tensor, options: dict[str, Any]) -> Any:
        if getattr(self._config, "return_dict", True) is False:
            options = {**options, "return_dict": True}
        if not self._has_defense:
            # A De^3 model adds its noise in float32.
            pixel_values = pixel_values.to(_dtype_of(self._core[0], pixel_values.dtype))
        return self._model[0](pixel_values, **options)

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


@contextmanager
def _forked(device: torch.device) -> Iterator[None]:
    """Restore the global random state of the CPU and of `device` after a `with` block."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _dtype_of(model: nn.Module, default: torch.dtype) -> torch.dtype:
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), default)


def _check_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training:
            where = f"the part {name!r} of the model" if name else "the model"
            raise ValueError(f"{where} is in train mode, where dropout and another sigma apply; call model.eval()")


def pipeline_options(pipeline: Pipeline) -> dict[str, Any]:
    """Return the options of the De^3 defense with which a pipeline was made."""
    options = getattr(pipeline, "_forward_params", {})
    return {name: options[name] for name in ("sigma", "num_samples", "vote") if name in options}


def _normalization(
    model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, processor: Any
) -> tuple[list[float] | None, list[float] | None]:
    """Return mean and standard deviation per channel; `None` for a module that takes pixels as they are."""
    config, timm = getattr(model, "config", None), timm_settings(model, processor)
    source = config if processor is None else processor
    if processor is not None:
        factor = getattr(processor, "rescale_factor", 1 / 255)
        if not getattr(processor, "do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ValueError(
                f"{type(processor).__name__} does not map 0..255 to pixels in [0, 1] (do_rescale="
                f"{getattr(processor, 'do_rescale', True)}, rescale_factor={factor}); pass image_mean and image_std"
                " for pixels in [0, 1]"
            )
        if not getattr(processor, "do_normalize", True):
            channels = getattr(config, "num_channels", 3)
            mean, std = mean or [0.0] * channels, std or [1.0] * channels
    is_plain = mean is None and std is None and source is None and not timm
    if is_plain:
        return None, None
    mean = mean if mean is not None else getattr(source, "image_mean", timm.get("mean"))
    std = std if std is not None else getattr(source, "image_std", timm.get("std"))
    if mean is None or std is None:
        where = f"the config of {type(model).__name__}" if source is config else type(processor).__name__
        where = where if source is not None else type(model).__name__
        raise ValueError(
            f"{where} does not hold the normalization of its images; pass image_mean and image_std of its image"
            " processor, or image_processor"
        )
    return list(mean), list(std)
