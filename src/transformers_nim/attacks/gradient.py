# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Projected gradient descent through a random defense."""

from collections.abc import Callable

import torch
from torch import nn


def eot_pgd(
    classifier: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    steps: int = 100,
    step_size: float | None = None,
    num_draws: int = 20,
    keep_best: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    on_step: Callable[[], object] | None = None,
) -> torch.Tensor:
    """Untargeted Linf PGD on the cross entropy averaged over draws of the defense's noise (EOT, arXiv 1802.00420).

    Starts at a random point of the ball and takes signed steps along the gradient of the mean loss. The gradient is
    that of the whole defense. With one draw and `keep_best=False` this is the plain PGD of arXiv 1706.06083.

    Args:
        classifier: Maps pixels of shape `(batch, channels, height, width)` in [0, 1] to logits, with fresh noise in
            every row of the batch; see [`PixelClassifier`].
        pixels: Images with pixels in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes, shape `(batch,)`, or probabilities of the classes, shape `(batch, classes)`.
        eps: Radius of the Linf ball in pixels of [0, 1], so 8/255 is `8 / 255`.
        steps: Gradient steps.
        step_size: Length of a step in pixels of [0, 1]; `2.5 * eps / steps` by default.
        num_draws: Noise draws over which each gradient is averaged.
        keep_best: Whether to return, of all iterates, the one with the highest mean loss instead of the last. A loss
            is judged on the draws of its own step, so with few draws a lucky one can win.
        batch_size: How many images, these draws counted, pass to the classifier at once.
        seed: Seed of start and noise. The global random state is as before when the attack is done.
        on_step: Called after every gradient step of every batch, for progress bars.

    Returns:
        Adversarial images in the ball and in [0, 1].

    Raises:
        ValueError: An argument is out of range or pixels lie outside [0, 1].
    """
    if eps < 0 or steps < 1 or num_draws < 1:
        raise ValueError(f"need eps >= 0, steps >= 1 and num_draws >= 1, got {eps}, {steps} and {num_draws}")
    if pixels.numel() and (pixels.min() < 0 or pixels.max() > 1):
        raise ValueError(f"pixels must lie in [0, 1], got {pixels.min():.3f} to {pixels.max():.3f}")
    step_size = 2.5 * eps / steps if step_size is None else step_size
    devices = [pixels.device] if pixels.device.type == "cuda" else []
    adversarial = []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        per_batch = max(1, batch_size // num_draws)
        for clean, target in zip(pixels.split(per_batch), labels.split(per_batch)):
            adversarial.append(
                _attack(classifier, clean, target, eps, steps, step_size, num_draws, keep_best, on_step)
            )
    return torch.cat(adversarial)


def _attack(classifier, clean, labels, eps, steps, step_size, num_draws, keep_best, on_step) -> torch.Tensor:
    low, high = (clean - eps).clamp(min=0), (clean + eps).clamp(max=1)
    current = clean + torch.empty_like(clean).uniform_(-eps, eps)
    current = torch.minimum(torch.maximum(current, low), high)
    targets = labels.repeat_interleave(num_draws, dim=0)
    best, best_loss = current, torch.full(labels.shape[:1], -torch.inf, device=clean.device)
    # One evaluation more than steps, because the last iterate has to be judged too.
    for step in range(steps + 1 if keep_best else steps):
        with torch.enable_grad():
            current = current.detach().requires_grad_()
            logits = classifier(current.repeat_interleave(num_draws, dim=0))
            loss = nn.functional.cross_entropy(logits.to(torch.float32), targets, reduction="none")
            loss = loss.unflatten(0, (-1, num_draws)).mean(dim=1)
            (gradient,) = torch.autograd.grad(loss.sum(), current)
        current, loss = current.detach(), loss.detach()
        if keep_best:
            better = loss > best_loss
            best = torch.where(better[:, None, None, None], current, best)
            best_loss = torch.where(better, loss, best_loss)
        if step < steps:
            current = current + step_size * gradient.sign()
            current = torch.minimum(torch.maximum(current, low), high)
            if on_step is not None:
                on_step()
    return best if keep_best else current
