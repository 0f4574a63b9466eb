# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Losses of a random classifier, averaged over noise draws, for attacks to maximize."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.outputs_nim import combine_draws
from .geometry import per_image
from .not_finite import finite_gradient, finite_loss, note
from .randomness import Classifier, Generators, draw_logits


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    log_probs = logits.log_softmax(dim=-1)
    if labels.is_floating_point():
        return -(log_probs * labels[:, None]).sum(dim=-1)
    return -_of_label(log_probs, labels)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    # On a tie with the right class argmax may choose either; the margin is 0.
    is_label = torch.nn.functional.one_hot(labels, logits.shape[-1]).to(torch.bool)[:, None]
    return logits.masked_fill(is_label, -torch.inf).amax(dim=-1) - _of_label(logits, labels)


def _dlr(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[-1] < 3:
        raise ValueError(
            f"the DLR loss divides by the difference of first and third logit, so it needs at least 3 classes; the"
            f" classifier has {logits.shape[-1]}. Take the margin loss"
        )
    ordered = logits.topk(3, dim=-1).values
    return _margin(logits, labels) / (ordered[..., 0] - ordered[..., 2] + 1e-12)


def targeted_dlr_loss(draws: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted DLR loss (Croce and Hein, arXiv 2003.01690, section 4), averaged over noise draws.

    It is the target's logit minus the label's, divided by the first logit minus the mean of third and fourth.

    Args:
        draws: Logits, shape `(batch, draws, classes)`.
        labels: True classes, shape `(batch,)`.
        targets: Other classes, which the attack is to reach, shape `(batch,)`.

    Returns:
        Losses in float32 (float64 for float64 logits), shape `(batch,)`.

    Raises:
        ValueError: There are fewer than 4 classes.
    """
    if draws.shape[-1] < 4:
        raise ValueError(
            "the targeted DLR loss divides by logits up to the fourth, so it needs at least 4 classes; the classifier"
            f" has {draws.shape[-1]}. Take the margin loss"
        )
    if draws.dtype != torch.float64:
        draws = draws.to(torch.float32)
    ordered = draws.topk(4, dim=-1).values
    scale = ordered[..., 0] - (ordered[..., 2] + ordered[..., 3]) / 2
    return ((_of_label(draws, targets) - _of_label(draws, labels)) / (scale + 1e-12)).mean(dim=1)


def _vote(logits: Tensor, labels: Tensor) -> Tensor:
    return _cross_entropy(combine_draws(logits, "mean")[:, None], labels)


def _of_label(values: Tensor, labels: Tensor) -> Tensor:
    index = labels[:, None, None].expand(-1, values.shape[1], 1)
    return values.gather(-1, index).squeeze(-1)


_LOSSES = {"ce": _cross_entropy, "margin": _margin, "dlr": _dlr, "vote": _vote}
LOSSES = tuple(_LOSSES)


def check_losses(losses: Sequence[str]) -> tuple[str, ...]:
    """Return the names of losses as a tuple.

    Raises:
        ValueError: There are none, or one is unknown or there twice.
    """
    names = (losses,) if isinstance(losses, str) else tuple(losses)
    if not names or len(set(names)) < len(names) or not set(names) <= set(LOSSES):
        raise ValueError(f"losses must be one or more different of {list(LOSSES)}, got {list(names)}")
    return names


def adversarial_loss(name: str, draws: Tensor, labels: Tensor) -> Tensor:
    """Return a loss that rises as a classifier errs, averaged over noise draws.

    Args:
        name: `"ce"`: cross entropy. `"margin"`: the highest other logit minus that of the label; positive if and only
            if the answer is wrong. `"dlr"`: the margin divided by the difference of first and third logit, which does
            not depend on the logits' scale (Croce and Hein, arXiv 2003.01690, section 4). `"vote"`: cross entropy of
            the mean probability, by which a vote of that many draws decides.
        draws: Logits, shape `(batch, draws, classes)`.
        labels: True classes, shape `(batch,)`; for `"ce"` and `"vote"` also probabilities, shape `(batch, classes)`.

    Returns:
        Losses in float32 (float64 for float64 logits), shape `(batch,)`.

    Raises:
        ValueError: The loss is unknown, cannot take probabilities, or needs more classes.
    """
    if name not in _LOSSES:
        raise ValueError(f"loss must be one of {list(LOSSES)}, got {name!r}")
    if labels.is_floating_point() and name not in ("ce", "vote"):
        raise ValueError(
            f"the {name} loss needs the one true class of each image, got probabilities of shape"
            f" {tuple(labels.shape)}; take the loss 'ce'"
        )
    if draws.dtype != torch.float64:
        draws = draws.to(torch.float32)
    return _LOSSES[name](draws, labels).mean(dim=1)


@dataclass(frozen=True)
class Objective:
    """The averaged loss of a classifier, and its gradient.

    Both are finite. A loss that is infinite or no number becomes a very large one, as such an answer is not right. In
    a gradient infinity becomes a large number, and what is no number 0. [`Attack`] tells on which images.

    Attributes:
        classifier: The classifier to attack.
        loss: One of `LOSSES`.
        num_draws: Noise draws per image.
        targets: Classes that the targeted form of the loss `"dlr"` is to reach, shape `(batch,)`; `None` is
            untargeted.
    """

    classifier: Classifier
    loss: str
    num_draws: int
    targets: Tensor | None = None

    def draws(self, images: Tensor, labels: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
        """Return the losses, shape `(batch,)`, and their logits, shape `(batch, draws, classes)`."""
        logits = draw_logits(self.classifier, images, self.num_draws, generators)
        if self.targets is None:
            loss = adversarial_loss(self.loss, logits, labels)
        else:
            loss = targeted_dlr_loss(logits, labels, self.targets)
        note(loss.detach().isfinite()[:, None])
        return finite_loss(loss), logits

    def gradient(self, images: Tensor, labels: Tensor, generators: Generators) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses and logits as `draws` does, and the gradients of the losses, of the images' shape.

        Raises:
            ValueError: The classifier is not differentiable.
        """
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            loss, logits = self.draws(images, labels, generators)
            if not loss.requires_grad:
                raise ValueError(
                    "no gradient flows from the classifier's logits to its pixels; attack it with 'square', or with an"
                    " approximate gradient such as PixelClassifier(gradient='bpda')"
                )
            (gradient,) = torch.autograd.grad(loss.sum(), images)
        note(gradient.isfinite())
        return loss.detach(), logits.detach(), finite_gradient(gradient)


class BestIterates:
    """The best point that an attack visits, for each image.

    Points are judged by the attack's averaged loss and by the averaged margin. The highest cross entropy need not be
    a wrong answer; a positive margin is one.
    """

    def __init__(self, objective: Objective, labels: Tensor) -> None:
        self.labels, self.loss = labels, objective.loss
        self.names = [objective.loss]
        if not labels.is_floating_point() and objective.loss not in ("margin", "vote"):
            self.names.append("margin")
        self.images: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}

    def update(self, images: Tensor, loss: Tensor, logits: Tensor) -> Tensor:
        """Take note of a point, and return whether the loss of each image is its highest so far, shape `(batch,)`."""
        improved = {}
        for name in self.names:
            value = loss if name == self.loss else finite_loss(adversarial_loss(name, logits, self.labels))
            highest = self._values.get(name)
            better = torch.ones_like(value, dtype=torch.bool) if highest is None else value > highest
            self.images[name] = torch.where(per_image(better), images, self.images.get(name, images))
            self._values[name] = value if highest is None else torch.where(better, value, highest)
            improved[name] = better
        return improved[self.loss]

    @property
    def candidates(self) -> list[Tensor]:
        """The best points by the loss and by the margin."""
        return list(self.images.values())
