# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Seeds, one for each image, and what is asked of a classifier whose answers are random."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


# Pixels of shape (batch, channels, height, width) in [0, 1] to logits of shape (batch, classes).
Classifier = Callable[[torch.Tensor], torch.Tensor]


def derive_seed(*parts: int | str) -> int:
    """A seed in `[0, 2**63)` from numbers and words.

    Unlike sums and exclusive ors of seeds, those of different parts do not collide, and all their bits are mixed
    (torch's CPU generator looks at the low 32 alone).
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def image_seeds(seed: int, num_images: int) -> list[int]:
    """One seed for each image, from the seed of a run and the image's position."""
    return [derive_seed(seed, "image", position) for position in range(num_images)]


def image_generators(seeds: Sequence[int], purpose: str, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator for each image.

    Args:
        seeds: The images' seeds.
        purpose: What the numbers are for. Other purposes see other numbers.
        device: Where noise will be drawn.
    """
    return [torch.Generator(device).manual_seed(derive_seed(seed, purpose)) for seed in seeds]


def is_deterministic(classifier: Classifier) -> bool:
    """Whether a classifier says of itself that equal pixels always get equal logits; see [`PixelClassifier`]."""
    return bool(getattr(classifier, "is_deterministic", False))


def draw_logits(
    classifier: Classifier, pixels: torch.Tensor, num_draws: int, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Asks a classifier for several answers to each image, in one pass.

    Args:
        classifier: A [`PixelClassifier`], or another module with its `draw_logits`, takes its noise from `generators`.
            Of any other callable every image is asked `num_draws` times in one batch; where its noise comes from is
            its own affair.
        pixels: Images of shape `(batch, channels, height, width)` in [0, 1].
        num_draws: Answers per image.
        generators: One for each image.

    Returns:
        Logits of shape `(batch, num_draws, classes)`, or `(batch, 1, classes)` if answers do not vary.
    """
    own = getattr(classifier, "draw_logits", None)
    if own is not None:
        return own(pixels, num_draws, generators)
    if is_deterministic(classifier):
        num_draws = 1
    return classifier(pixels.repeat_interleave(num_draws, dim=0)).unflatten(0, (-1, num_draws))


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Puts the global random state of the CPU and of `device` back as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
