# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Classifiers whose best attack is known."""

import torch

from transformers_nim.attacks import image_generators
from transformers_nim.attacks.randomness import draw_logits


class Linear:
    """Random linear logits, or those of given weights `(classes, channels, height, width)`."""

    is_deterministic = True

    def __init__(self, classes=2, shape=(3, 4, 4), seed=0):
        self.weight = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed))

    def __call__(self, pixels):
        return pixels.flatten(1) @ self.weight.flatten(1).T

    def gap(self, labels):
        """Return the gradient of each image's margin, for two classes."""
        return self.weight[1 - labels] - self.weight[labels]


class NormBall:
    """Answers 0 within a radius of gray and 1 beyond it."""

    is_deterministic = True

    def __init__(self, norm, radius):
        self.order, self.radius = float("inf") if norm == "Linf" else 2, radius

    def __call__(self, pixels):
        distance = torch.linalg.vector_norm((pixels - 0.5).flatten(1), ord=self.order, dim=1)
        return torch.stack([self.radius - distance, distance - self.radius, torch.full_like(distance, -9)], dim=1)


class Noisy:
    """Adds noise from the generators to the pixels, as a defense does."""

    def __init__(self, classifier, scale):
        self.classifier, self.scale, self.queries = classifier, scale, 0

    def draw_logits(self, pixels, num_draws, generators):
        self.queries += len(pixels) * num_draws
        shape = (num_draws, *pixels.shape[1:])
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        noisy = (pixels.unsqueeze(1) + self.scale * noise).flatten(0, 1)
        return self.classifier(noisy).unflatten(0, (-1, num_draws))


class Masked:
    """Rounds pixels to a few levels first: almost the same answers, and gradients of zero."""

    is_deterministic = True

    def __init__(self, classifier, levels=64):
        self.classifier, self.levels = classifier, levels

    def __call__(self, pixels):
        return self.classifier((pixels * self.levels).round() / self.levels)


def boundary_points(linear, num_images, distance, seed=1):
    """Return images near gray that a linear classifier of two classes assigns to class 0 by `distance`."""
    gap = linear.weight[1] - linear.weight[0]
    shape = (num_images, *gap.shape)
    pixels = 0.5 + 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    excess = ((pixels * gap).sum(dim=(1, 2, 3)) + distance) / gap.square().sum()
    return pixels - excess[:, None, None, None] * gap


def share_right(classifier, pixels, labels, num_draws=400):
    """Return the accuracy over draws that no attack has seen."""
    generators = image_generators(range(len(pixels)), "test")
    with torch.no_grad():
        logits = draw_logits(classifier, pixels, num_draws, generators)
    return (logits.argmax(dim=-1) == labels[:, None]).float().mean().item()
