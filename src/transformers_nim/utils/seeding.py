# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Randomness that is a function of what it is for, not of what was drawn before.

Every draw in training has a seed of its own, derived from the run's seed and from the name of the draw: which image in
which epoch, which step. So a run that was interrupted goes on with the same draws, and the number of processes and
DataLoader workers changes none of those that belong to an image.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | float | str) -> int:
    """Return a seed in `[0, 2**63)` for the draw that `parts` name.

    Unlike sums of seeds, seeds of different parts do not collide, and all their bits are mixed.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_seed_32(*parts: int | float | str) -> int:
    """Return a seed in `[0, 2**32)`, all that NumPy takes, for the draw that `parts` name."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded(seed: int, restore: bool = True) -> Iterator[None]:
    """Seeds the global generators of `random`, NumPy and torch (CPU) in a `with` block, and restores them after it.

    Args:
        seed: From 0 to 2**32 - 1.
        restore: Whether to restore them, which takes ten times as long as the seeding. Not needed where nobody else
            draws from them, as in DataLoader workers.
    """
    if restore:
        states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if restore:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.default_generator.set_state(states[2])


def seed_step(seed: int, step: int, process_index: int) -> None:
    """Seeds all global generators, those of accelerators too, for what one process draws in one step.

    That is what belongs to no single image: dropout, stochastic depth, mixup.
    """
    step_seed = derive_seed_32(seed, "step", step, process_index)
    random.seed(step_seed)
    np.random.seed(step_seed)
    torch.manual_seed(step_seed)


def image_seeds(seed: int, num_images: int) -> list[int]:
    """Return one seed for each image, from the seed of a run and the image's position."""
    return [derive_seed(seed, "image", position) for position in range(num_images)]


def image_generators(
    seeds: torch.Tensor | Sequence[int], purpose: str | None = None, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """Return one generator for each image of a batch, as the models take them.

    Args:
        seeds: A seed for each image, shape `(batch,)`.
        purpose: What the numbers are for; other purposes see other numbers. Left out, the seeds are used as they are.
        device: Where the noise is drawn.
    """
    numbers = [int(seed) if purpose is None else derive_seed(int(seed), purpose) for seed in seeds]
    return [torch.Generator(device).manual_seed(number) for number in numbers]


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Restore the global random state of the CPU and of `device` after a `with` block."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
