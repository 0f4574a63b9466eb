# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The base of all attacks, and attacks by name."""

import dataclasses
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..model.checks_nim import check_counts
from ..utils.seeding import forked_rng, image_seeds
from .geometry import NORMS, Ball, check_images, warn_of_eps
from .not_finite import looking_for_not_finite
from .randomness import Classifier, InHalf


AttackT = TypeVar("AttackT", bound="type[Attack]")
OnStep = Callable[[], object]
OnNotFinite = Callable[[list[int]], object]

# Options that are ints of at least 1 in every attack that has them.
_COUNTS = ("steps", "restarts", "num_draws", "num_queries", "batch_size", "resolution")
_ATTACKS: dict[str, type["Attack"]] = {}


@dataclasses.dataclass(frozen=True)
class Attack(ABC):
    """An attack with its options, called as `attack(classifier, pixels, labels, eps=8 / 255)`.

    Subclasses are frozen dataclasses, whose fields are the options. A wrong option is refused when the attack is made:
    here where many attacks have it, such as `steps`. See [`register_attack`] for an attack of your own.

    Attributes:
        norms: The norms that the attack knows.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name, 1)
            if value is None:
                raise ValueError(f"{name} must be an int of at least 1, got None")
            check_counts(**{name: value})
        step_size = getattr(self, "step_size", None)
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size must be positive (in pixels of [0, 1]), got {step_size!r}")

    def __call__(
        self,
        classifier: Classifier,
        pixels: Tensor,
        labels: Tensor,
        *,
        eps: float,
        norm: str = "Linf",
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        on_not_finite: OnNotFinite | None = None,
    ) -> Tensor:
        """Make adversarial images and check that they lie in the ball.

        The global random state is left as it was. Where a loss or a gradient is not finite the attack goes on: an
        answer that is no number counts as wrong, and an entry of a gradient that is none as 0.

        Args:
            classifier: Maps pixels to logits. A [`PixelClassifier`] takes the noise of each image from its seed; any
                other callable must draw fresh noise for every row of the batch, or have a true `is_deterministic`.
            pixels: Clean images in [0, 1] up to rounding, shape `(batch, channels, height, width)`. Those in half
                precision are searched and returned in float32, as a step may be smaller than half precision can tell.
            labels: True classes, shape `(batch,)`. Some attacks also take probabilities, shape `(batch, classes)`.
            eps: Radius of the ball in pixels of [0, 1], such as `8 / 255`.
            norm: `"Linf"` or `"L2"`.
            seed: Seed of the attack. The seed of each image is derived from it and from the position of the image.
            seeds: One seed per image, instead of `seed`. What is found for an image depends on its own seed alone.
            on_step: Called after every step of every group of images, for progress bars.
            on_not_finite: Called with the positions of images where a loss or a gradient was not finite, if there are
                any; by default they are warned of.

        Returns:
            Adversarial images of the shape of `pixels`, in the ball and in [0, 1].

        Raises:
            ValueError: An argument is out of range, the attack does not know the norm, or it left its bounds.
        """
        ball = Ball(norm, eps)
        # The unbounded attack of an evaluation is meant.
        if eps > 1 and not math.isclose(eps, pixels[:1].numel() ** 0.5):
            warn_of_eps(norm, 255 * eps)
        if norm not in self.norms:
            raise ValueError(f"{type(self).__name__} is an attack for {' and '.join(self.norms)} alone, got {norm!r}")
        seeds = image_seeds(seed, len(pixels)) if seeds is None else seeds
        labels = check_images(pixels, labels, seeds, getattr(classifier, "num_classes", None) or None)
        if not len(pixels):
            return pixels.detach().clone()
        if pixels.dtype in (torch.float16, torch.bfloat16):
            classifier, pixels = InHalf(classifier, pixels.dtype), pixels.to(torch.float32)
        pixels = pixels.detach().clamp(0, 1)
        with forked_rng(pixels.device), looking_for_not_finite(len(pixels)) as found:
            try:
                adversarial = self._perturb(classifier, pixels, labels, ball, seeds, on_step or _ignore)
            except (IndexError, RuntimeError):
                _check_classes(classifier, pixels, labels)
                raise
        if found.images:
            (on_not_finite or self._warn)(sorted(found.images))
        ball.check(pixels, adversarial)
        return adversarial

    def _warn(self, positions: list[int]) -> None:
        warnings.warn(
            f"{type(self).__name__} met a loss or a gradient that is not finite on images {positions} of the batch,"
            " and may be weaker there; look at the classifier's logits",
            stacklevel=3,
        )

    @abstractmethod
    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        """Return adversarial images; the arguments are those of the call, checked, and there is at least one image."""


def _ignore() -> None:
    pass


def _check_classes(classifier: Classifier, pixels: Tensor, labels: Tensor) -> None:
    """Look for the cause of an error, which is told badly by what fails on it.

    Raises:
        ValueError: A label is none of the classes.
    """
    with torch.no_grad():
        num_classes = classifier(pixels[:1]).shape[-1]
    check_images(pixels, labels, range(len(pixels)), num_classes)


def register_attack(name: str) -> Callable[[AttackT], AttackT]:
    """Return a decorator that makes a class of attacks available under a name.

    Args:
        name: The name for [`make_attack`].

    Returns:
        A decorator for a subclass of [`Attack`] that is a frozen dataclass. It returns the class.

    Raises:
        ValueError: The name is taken by another class, or the class is not such a dataclass.

    Example:

    ```python
    >>> from dataclasses import dataclass

    >>> import torch
    >>> from transformers_nim.attacks import Attack, make_attack, register_attack

    >>> @register_attack("brighter")
    ... @dataclass(frozen=True)
    ... class Brighter(Attack):
    ...     share: float = 1.0
    ...
    ...     def __post_init__(self):
    ...         super().__post_init__()
    ...         if not 0 < self.share <= 1:
    ...             raise ValueError(f"share must be greater than 0 and at most 1, got {self.share}")
    ...
    ...     def _perturb(self, classifier, pixels, labels, ball, seeds, on_step):
    ...         step = self.share * ball.eps * ball.steepest(torch.ones_like(pixels))
    ...         return ball.project(pixels, pixels + step)

    >>> attack = make_attack("brighter", share=0.5)
    >>> pixels, labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    >>> attack(lambda pixels: pixels.mean((2, 3)), pixels, labels, eps=0.5).unique()
    tensor([0.2500])
    ```"""

    def decorate(cls: AttackT) -> AttackT:
        if not (inspect.isclass(cls) and issubclass(cls, Attack) and "__dataclass_fields__" in vars(cls)):
            raise ValueError(
                f"the attack {name!r} must be a subclass of Attack under @dataclass(frozen=True), got {cls}"
            )
        known = _ATTACKS.get(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the attack {name!r} is already {known.__module__}.{known.__qualname__}")
        _ATTACKS[name] = cls
        return cls

    return decorate


def available_attacks() -> list[str]:
    """Return the names of all attacks, in alphabetical order."""
    return sorted(_ATTACKS)


def attack_options(name: str) -> dict[str, Any]:
    """Return the options of an attack and their defaults (`inspect.Parameter.empty` for one that has to be given).

    Raises:
        ValueError: The name is unknown.
    """
    if name not in _ATTACKS:
        raise ValueError(f"unknown attack {name!r}; known: {available_attacks()}")
    return {key: option.default for key, option in inspect.signature(_ATTACKS[name]).parameters.items()}


def make_attack(name: str, **options: Any) -> Attack:
    """Return an attack by its name.

    Args:
        name: One of [`available_attacks`].
        options: Options of the attack, such as `steps` or `num_draws`; see [`attack_options`].

    Raises:
        ValueError: The name or an option is unknown, an option is out of range, or one without a default is missing.

    Example:

    ```python
    >>> import torch
    >>> from transformers_nim.attacks import make_attack

    >>> attack = make_attack("fgsm")
    >>> pixels = torch.full((1, 1, 2, 2), 0.5)
    >>> classifier = lambda pixels: torch.stack([pixels.mean(dim=(1, 2, 3)), 1 - pixels.mean(dim=(1, 2, 3))], dim=1)
    >>> attack(classifier, pixels, torch.tensor([0]), eps=0.25).unique()
    tensor([0.2500])
    ```"""
    allowed = attack_options(name)
    unknown = sorted(options.keys() - allowed.keys())
    if unknown:
        raise ValueError(f"the attack {name!r} has no option {unknown}; it has {sorted(allowed)}")
    needed = sorted(k for k, default in allowed.items() if default is inspect.Parameter.empty and k not in options)
    if needed:
        raise ValueError(f"the attack {name!r} needs the option {needed}")
    return _ATTACKS[name](**options)
