# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Derive the seed of every random draw from what the draw is for, not from what was drawn before.

In training, a seed derives from the run's seed and the name of the draw: the image and its epoch, or the step. So a
resumed run sees the same draws, and those that belong to an image do not depend on the number of processes or of
DataLoader workers.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | float | str) -> int:
    """Return a seed in `[0, 2**63)` for the draw that `parts` name.

    Unlike sums of seeds, seeds of different parts do not collide, and all their bits are mixed. (torch's CPU generator
    uses the low 32 bits alone.)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_seed_32(*parts: int | float | str) -> int:
    """Return a seed in `[0, 2**32)`, all that NumPy takes, for the draw that `parts` name."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded(seed: int, restore: bool = True) -> Iterator[None]:
    """Seed the global generators of `random`, NumPy and torch (CPU) in a `with` block, and restore them after it.

    Args:
        seed: From 0 to 2**32 - 1.
        restore: Whether to restore them, which takes ten times as long as seeding. DataLoader workers need not, since
            nothing else draws from their generators.
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
    """Seed all global generators, including those of accelerators, for one process in one step.

    They serve the draws that belong to no single image: dropout, stochastic depth, mixup.
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
        purpose: Name of the draw; another purpose gets other random numbers. None takes the seeds unchanged.
        device: Device of the generators.
    """
    numbers = [int(seed) if purpose is None else derive_seed(int(seed), purpose) for seed in seeds]
    return [torch.Generator(device).manual_seed(number) for number in numbers]


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Restore the global random state of the CPU and of `device` after a `with` block."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
