# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attacks by name, all with one signature."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from .geometry import Ball, check_images
from .randomness import Classifier


AttackFunction = Callable[..., torch.Tensor]
AttackT = TypeVar("AttackT", bound=AttackFunction)

# What every attack is given; its other parameters are options.
_COMMON = ("classifier", "pixels", "labels", "norm", "eps", "seeds", "on_step")
# `eot_pgd` can be called without seeds of the images; an attack of the registry always gets them.
_NOT_OPTIONS = (*_COMMON, "seed")
_ATTACKS: dict[str, AttackFunction] = {}


@dataclass(frozen=True)
class Attack:
    """A named attack with its options; see [`make_attack`].

    Attributes:
        name: The name in the registry.
        options: Options that differ from the defaults.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        classifier: Classifier,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        *,
        norm: str,
        eps: float,
        seeds: Sequence[int],
        on_step: Callable[[], object] | None = None,
    ) -> torch.Tensor:
        """Makes adversarial images, and checks that they are where they may be.

        Args:
            classifier: Maps pixels to logits; see [`PixelClassifier`].
            pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
            labels: True classes, shape `(batch,)`.
            norm: `"Linf"` or `"L2"`.
            eps: Radius of the ball in pixels of [0, 1], so 8/255 is `8 / 255`.
            seeds: One for each image.
            on_step: Called after every step of every group of images.

        Returns:
            Adversarial images of the shape of `pixels`.

        Raises:
            ValueError: An argument is out of range, the attack does not know the norm, or it left its bounds.
        """
        ball = Ball(norm, eps)
        check_images(pixels, labels, seeds)
        adversarial = _ATTACKS[self.name](
            classifier, pixels, labels, norm=norm, eps=eps, seeds=seeds, on_step=on_step, **self.options
        )
        ball.check(pixels, adversarial)
        return adversarial


def register_attack(name: str) -> Callable[[AttackT], AttackT]:
    """Decorator that makes an attack available under a name.

    Args:
        name: The name for [`make_attack`].

    Returns:
        A decorator for functions with the signature `(classifier, pixels, labels, *, norm, eps, seeds, on_step=None,
        **options) -> adversarial pixels`, whose options are spelled out as parameters. It returns the function.

    Raises:
        ValueError: The name is taken by another function, or the signature is another one.
    """

    def decorate(function: AttackT) -> AttackT:
        known = _ATTACKS.get(name, function)
        if (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"the attack {name!r} is already {known.__module__}.{known.__qualname__}")
        parameters = inspect.signature(function).parameters
        missing = [common for common in _COMMON if common not in parameters]
        if missing or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(
                f"the attack {name!r} must take {list(_COMMON)} and name each of its options; missing: {missing}"
            )
        _ATTACKS[name] = function
        return function

    return decorate


def available_attacks() -> list[str]:
    """The names of all attacks, in alphabetical order."""
    return sorted(_ATTACKS)


def attack_options(name: str) -> dict[str, Any]:
    """The options of an attack and their defaults (`inspect.Parameter.empty` for one that has to be given).

    Raises:
        ValueError: The name is unknown.
    """
    if name not in _ATTACKS:
        raise ValueError(f"unknown attack {name!r}; known: {available_attacks()}")
    parameters = inspect.signature(_ATTACKS[name]).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in _NOT_OPTIONS}


def make_attack(name: str, **options: Any) -> Attack:
    """An attack by its name.

    Args:
        name: One of [`available_attacks`].
        options: Options of the attack, such as `steps` or `num_draws`; see [`attack_options`].

    Returns:
        A callable `(classifier, pixels, labels, *, norm, eps, seeds, on_step=None) -> adversarial pixels`.

    Raises:
        ValueError: The name or an option is unknown, or an option that has no default is missing.

    Example:

    ```python
    >>> import torch
    >>> from transformers_nim.attacks import make_attack

    >>> attack = make_attack("fgsm")
    >>> pixels = torch.full((1, 1, 2, 2), 0.5)
    >>> classifier = lambda pixels: torch.stack([pixels.mean(dim=(1, 2, 3)), 1 - pixels.mean(dim=(1, 2, 3))], dim=1)
    >>> attack(classifier, pixels, torch.tensor([0]), norm="Linf", eps=0.25, seeds=[0]).unique()
    tensor([0.2500])
    ```"""
    allowed = attack_options(name)
    unknown = sorted(options.keys() - allowed.keys())
    if unknown:
        raise ValueError(f"the attack {name!r} has no option {unknown}; it has {sorted(allowed)}")
    needed = sorted(k for k, default in allowed.items() if default is inspect.Parameter.empty and k not in options)
    if needed:
        raise ValueError(f"the attack {name!r} needs the option {needed}")
    return Attack(name, dict(options))
