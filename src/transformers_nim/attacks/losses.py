# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What attacks maximize: losses of a random classifier, averaged over draws of its noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..model.outputs_nim import combine_draws
from .randomness import Classifier, draw_logits


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    log_probs = logits.log_softmax(dim=-1)
    if labels.is_floating_point():
        return -(log_probs * labels[:, None]).sum(dim=-1)
    return -_of_label(log_probs, labels)


def _margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # Where another class ties with the right one argmax may choose either, and the margin is 0.
    is_label = torch.nn.functional.one_hot(labels, logits.shape[-1]).to(torch.bool)[:, None]
    return logits.masked_fill(is_label, -torch.inf).amax(dim=-1) - _of_label(logits, labels)


def _dlr(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if logits.shape[-1] < 3:
        raise ValueError(
            f"the DLR loss divides by a difference of the first and the third logit, so it needs at least 3 classes;"
            f" the classifier has {logits.shape[-1]}. Take the margin loss"
        )
    ordered = logits.topk(3, dim=-1).values
    return _margin(logits, labels) / (ordered[..., 0] - ordered[..., 2] + 1e-12)


def _vote(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _cross_entropy(combine_draws(logits, "mean")[:, None], labels)


def _of_label(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    index = labels[:, None, None].expand(-1, values.shape[1], 1)
    return values.gather(-1, index).squeeze(-1)


_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "ce": _cross_entropy,
    "margin": _margin,
    "dlr": _dlr,
    "vote": _vote,
}
LOSSES = tuple(_LOSSES)


def adversarial_loss(name: str, draws: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss that rises as a classifier errs, averaged over the draws of its noise.

    Args:
        name: `"ce"` (cross entropy), `"margin"` (highest other logit less that of the label: positive if and only if
            the answer is wrong), `"dlr"` (the margin over the distance of first and third logit, which makes it
            independent of the logits' scale: Croce and Hein, arXiv 2003.01690, section 4), or `"vote"` (cross entropy
            of the mean probability, which is what a vote of that many draws decides by).
        draws: Logits of shape `(batch, draws, classes)`.
        labels: True classes of shape `(batch,)`; for `"ce"` and `"vote"` also probabilities of shape
            `(batch, classes)`.

    Returns:
        Float32 losses (float64 for float64 logits) of shape `(batch,)`.

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
    """The averaged loss of one classifier, as attacks ask for it.

    Attributes:
        classifier: What is attacked.
        loss: One of `LOSSES`.
        num_draws: Draws of the noise per image and question.
    """

    classifier: Classifier
    loss: str
    num_draws: int

    def draws(
        self, images: torch.Tensor, labels: torch.Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of shape `(batch,)` and the logits of shape `(batch, draws, classes)` they are of."""
        logits = draw_logits(self.classifier, images, self.num_draws, generators)
        loss = adversarial_loss(self.loss, logits, labels)
        if not bool(torch.isfinite(loss.detach()).all()):
            raise FloatingPointError(
                f"the {self.loss} loss of {int((~torch.isfinite(loss)).sum())} of {len(loss)} images is not finite:"
                " an attack cannot tell better from worse there; look at the classifier's logits"
            )
        return loss, logits

    def gradient(
        self, images: torch.Tensor, labels: torch.Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses and logits as from `draws`, and the gradient of each image's loss, of the images' shape.

        Raises:
            ValueError: The logits do not depend on the pixels in a way that autograd sees.
            FloatingPointError: A loss or a gradient is not finite.
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
        if not bool(torch.isfinite(gradient).all()):
            raise FloatingPointError(f"the gradient of the {self.loss} loss is not finite")
        return loss.detach(), logits.detach(), gradient


class BestIterates:
    """Of all the points that an attack visits, the best one for each image.

    Judged twice: by the attack's averaged loss, and by the averaged margin. The highest cross entropy need not be a
    wrong answer; a positive margin is one.
    """

    def __init__(self, objective: Objective, labels: torch.Tensor) -> None:
        self.labels = labels
        self.names = [objective.loss]
        if not labels.is_floating_point() and objective.loss not in ("margin", "vote"):
            self.names.append("margin")
        self.images: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = {}

    def update(self, images: torch.Tensor, loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Takes note of a point and tells for which images its loss is the highest so far, shape `(batch,)`."""
        improved = torch.ones_like(loss, dtype=torch.bool)
        for name in self.names:
            is_own = name == self.names[0]
            value = loss if is_own else adversarial_loss(name, logits, self.labels)
            better = torch.ones_like(improved) if name not in self.values else value > self.values[name]
            if name in self.values:
                images_so_far = self.images[name]
                self.images[name] = torch.where(better[:, None, None, None], images, images_so_far)
                self.values[name] = torch.where(better, value, self.values[name])
            else:
                self.images[name], self.values[name] = images, value
            if is_own:
                improved = better
        return improved

    @property
    def candidates(self) -> list[torch.Tensor]:
        """The best points, by the loss and by the margin."""
        return list(self.images.values())
