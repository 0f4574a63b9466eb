# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attacks of torchattacks and AutoAttack, kept from what they do to their surroundings.

They print, seed the global random state of torch, Python and NumPy, switch modes, and average neither gradients nor
acceptance as a random defense needs. They are here to compare with: what they find is no headline.
"""

import contextlib
import io
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils.extras import require
from ..utils.seeding import derive_seed, forked_rng
from .geometry import Ball, check_images
from .pgd import OnStep, check_counts
from .randomness import Classifier, draw_logits, is_deterministic
from .registry import register_attack
from .restarts import BATCH_SIZE, run_restarts


@register_attack("torchattacks_fgsm")
def torchattacks_fgsm(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """FGSM of torchattacks; see [`torchattacks_pgd`]."""
    return _torchattacks("FGSM", {}, classifier, pixels, labels, norm, eps, seeds, batch_size)


@register_attack("torchattacks_pgd")
def torchattacks_pgd(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    steps: int = 10,
    step_size: float = 2 / 255,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """PGD of torchattacks (the extra `attacks`), with one draw of the noise per step.

    The noise is that of each image's seed, but the random start depends on the image's place in the batch.

    Args:
        classifier: What is attacked; see [`eot_pgd`].
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes, shape `(batch,)`.
        norm: `"Linf"`.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image.
        on_step: Not called.
        steps: Gradient steps.
        step_size: Length of a step in pixels of [0, 1].
        batch_size: How many images are attacked at once.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: An argument is out of range.
        ImportError: torchattacks is not installed.
    """
    check_counts(steps=steps)
    options = {"steps": steps, "alpha": step_size}
    return _torchattacks("PGD", options, classifier, pixels, labels, norm, eps, seeds, batch_size)


@register_attack("torchattacks_eotpgd")
def torchattacks_eotpgd(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    steps: int = 10,
    step_size: float = 2 / 255,
    num_draws: int = 20,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """EOT-PGD of torchattacks, which asks for its draws one after the other and returns the last iterate.

    Further arguments, returns and errors are those of [`torchattacks_pgd`].

    Args:
        num_draws: Noise draws over which each gradient is averaged.
    """
    check_counts(steps=steps, num_draws=num_draws)
    options = {"steps": steps, "alpha": step_size, "eot_iter": num_draws}
    return _torchattacks("EOTPGD", options, classifier, pixels, labels, norm, eps, seeds, batch_size)


@register_attack("autoattack")
def autoattack(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    parts: Sequence[str] = ("apgd-ce", "apgd-t", "fab-t", "square"),
    steps: int = 100,
    num_queries: int = 5000,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """AutoAttack (arXiv 2003.01690) in the form of the package pyautoattack, as a cross-check of fixed noise.

    With the default options it is the standard version. Images that it does not break come back clean.

    Args:
        classifier: A deterministic classifier, such as `PixelClassifier(model, fixed_noise=True)`. One lucky draw
            would count as a success, so others are refused.
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes, shape `(batch,)`.
        norm: `"Linf"` or `"L2"`.
        eps: Radius of the ball in pixels of [0, 1].
        seeds: One for each image. The tool has one for all, which is made of these.
        on_step: Not called.
        parts: Attacks to run one after the other, of `"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"`, `"fab-t"` and
            `"square"`. The targeted ones need 4 classes, `"apgd-dlr"` needs 3.
        steps: Steps of APGD and FAB.
        num_queries: Queries of Square.
        batch_size: How many images are attacked at once.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: The classifier does not say that it is deterministic, a part is unknown, or it needs more classes.
        ImportError: pyautoattack is not installed.
    """
    ball = Ball(norm, eps)
    check_images(pixels, labels, seeds)
    check_counts(steps=steps, num_queries=num_queries, batch_size=batch_size)
    needed = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2, "square": 2}
    if not parts or not set(parts) <= set(needed):
        raise ValueError(f"parts must be one or more of {sorted(needed)}, got {list(parts)}")
    if not is_deterministic(classifier):
        raise ValueError(
            "autoattack drops an image after one lucky draw, so it needs a deterministic classifier; pass"
            " PixelClassifier(model, fixed_noise=True), or attack the noise with 'eot_apgd_ce'"
        )
    package = require("pyautoattack")
    if not len(pixels):
        return pixels.clone()
    with torch.no_grad():
        num_classes = classifier(pixels[:1]).shape[-1]
    short = [part for part in parts if needed[part] > num_classes]
    if short:
        raise ValueError(f"{short} need more than the classifier's {num_classes} classes; leave them out of parts")

    labels = labels.to(pixels.device)
    with _contained(pixels.device):
        seed = derive_seed("autoattack", *seeds) % 2**32
        made = package.AutoAttack(
            _Logits(classifier), norm=norm, eps=eps, seed=seed, version="custom", attacks=list(parts),
            device=pixels.device,
        )  # fmt: skip
        # Those of its standard version, and no more targets than there are other classes.
        targets = min(9, num_classes - 1)
        made.apgd.n_restarts = made.fab.n_restarts = made.apgd_targeted.n_restarts = 1
        made.apgd_targeted.n_target_classes = made.fab.n_target_classes = targets
        for part in (made.apgd, made.apgd_targeted):
            # The lengths of its periods are worked out when it is made.
            part.n_iter = part.n_iter_orig = steps
            part.n_iter_2, part.n_iter_min = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
            part.size_decr = max(int(0.03 * steps), 1)
        made.fab.n_iter, made.square.n_queries = steps, num_queries
        adversarial, _ = made.run_standard_evaluation(pixels.detach(), labels, batch_size=batch_size)
    return ball.project(pixels, adversarial)


class _Logits(nn.Module):
    """A classifier as these tools want it: a module with logits that they may write into, noise from given seeds."""

    def __init__(self, classifier: Classifier, generators: list[torch.Generator] | None = None) -> None:
        super().__init__()
        # A list keeps it out of their .eval(), .train() and .to().
        self._classifier, self._generators = [classifier], generators
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._generators is None:
            logits = self._classifier[0](pixels)
        else:
            logits = draw_logits(self._classifier[0], pixels, 1, self._generators)[:, 0]
        return logits.clone()


@contextlib.contextmanager
def _contained(device: torch.device) -> Iterator[None]:
    """Keeps what is inside from printing and from changing global random states and the trace function."""
    states, trace = (random.getstate(), np.random.get_state()), sys.gettrace()
    try:
        with forked_rng(device), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if sys.gettrace() is not trace:
            sys.settrace(trace)


def _torchattacks(
    name: str, options: dict[str, Any], classifier: Classifier, pixels: torch.Tensor, labels: torch.Tensor,
    norm: str, eps: float, seeds: Sequence[int], batch_size: int,
) -> torch.Tensor:  # fmt: skip
    if norm != "Linf":
        raise ValueError(f"{name} of torchattacks is an Linf attack, got norm {norm!r}")
    ball = Ball(norm, eps)
    make: Callable[..., Any] = getattr(require("torchattacks"), name)

    def run(clean: torch.Tensor, targets: torch.Tensor, generators: list[torch.Generator]) -> list[torch.Tensor]:
        with contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
            made = make(_Logits(classifier, generators), eps=eps, **options)
            made.set_device(clean.device)
            return [ball.project(clean, made(clean, targets))]

    return run_restarts(classifier, pixels, labels, seeds, {f"torchattacks/{name}": run}, 1, batch_size)
