# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Seeds that are named, and generators that are given back as they were."""

import random

import numpy as np
import pytest
import torch

from transformers_nim.utils.seeding import (
    derive_seed,
    derive_seed_32,
    forked_rng,
    image_generators,
    image_seeds,
    seed_step,
    seeded,
)


def draw() -> tuple:
    """Something of every global generator, also of those that draw normal numbers in pairs."""
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.normal(),
        torch.rand(1).item(),
        torch.randn(1).item(),
    )


def test_seeds_are_those_of_earlier_releases():
    """Runs resume, and records are repeated, with the same draws, whatever the version and Python's hashes."""
    assert derive_seed_32(0, "noise", 0, 0) == 2991377153
    assert derive_seed_32(7, "augmentation", 3, 12) == 940445878
    assert derive_seed_32() == 3138146411
    assert derive_seed(0, "image", 0) == 9025008735536060430
    assert derive_seed(7, "evaluation") == 4227291619872535536
    assert derive_seed() == 5460801731388113703
    assert image_seeds(5, 3) == [2036247820830928993, 5703793426113310789, 3455752861756889093]


@pytest.mark.parametrize("derive", [derive_seed, derive_seed_32])
def test_every_part_counts(derive):
    names = [(0, "order", 1), (1, "order", 0), ("0", "order", 1), (0, "noise", 1), (0, "order", 1, 0), (0, "order")]
    assert len({derive(*name) for name in names}) == len(names)


@pytest.mark.parametrize(("derive", "width"), [(derive_seed, 63), (derive_seed_32, 32)])
def test_seeds_fill_their_range(derive, width):
    seeds = np.array([derive("image", i) for i in range(20_000)])
    # Among so many draws from 2**32 numbers, 0.05 pairs are expected to be equal.
    assert len(np.unique(seeds)) >= len(seeds) - 1
    assert 0 <= seeds.min() < 2**width / 1000
    assert 2**width - 2**width / 1000 < seeds.max() < 2**width
    bits = (seeds[:, None] >> np.arange(width)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02  # 5 standard deviations are 0.018


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_generators_take_the_largest_seed(seed):
    with seeded(seed):
        draw()
    seed_step(seed, 0, 0)
    image_generators([seed], device="cpu")


def test_a_block_is_seeded_and_leaves_no_trace():
    with seeded(1):
        inside = draw()
    # Half of each pair of normal numbers still waits to be drawn.
    draw()
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    with seeded(1):
        assert draw() == inside
        with seeded(2):
            assert all(a != b for a, b in zip(draw(), inside))
        after_inner = draw()
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    with seeded(1):
        draw()
        assert draw() == after_inner


def test_restoring_can_be_left_out():
    with seeded(5):
        expected = draw(), draw()
    with seeded(5, restore=False):
        first = draw()
    assert (first, draw()) == expected


def test_a_block_that_fails_leaves_no_trace():
    with seeded(3):
        expected = draw()

    def fail() -> None:
        with seeded(4):
            draw()
            raise KeyError

    with seeded(3):
        with pytest.raises(KeyError):
            fail()
        assert draw() == expected


def test_steps_differ_by_seed_step_and_process():
    def draws(*key: int) -> tuple:
        seed_step(*key)
        return draw()

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    drawn = [draws(*key) for key in keys]
    for of_generator in zip(*drawn):
        assert len(set(of_generator)) == len(keys)
    assert [draws(*key) for key in keys] == drawn


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_one_generator_for_each_image(kind):
    seeds = [5, 0, 2**32 - 1, 5]
    generators = image_generators(kind(seeds), device="cpu")
    drawn = [torch.rand(3, generator=generator) for generator in generators]
    expected = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected))
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    # Equal seeds, yet not the same generator.
    further = torch.rand(3, generator=generators[0])
    assert not torch.equal(further, drawn[0])
    assert torch.equal(further, torch.rand(3, generator=generators[3]))
    assert image_generators(kind(seeds), device=torch.device("cpu"))[0].device == torch.device("cpu")


def test_each_purpose_has_numbers_of_its_own():
    generators = image_generators([5, 2**62], "evaluation")
    # As earlier releases drew them.
    assert [generator.initial_seed() for generator in generators] == [7584856572116579784, 1470485566362760719]
    expected = [torch.Generator().manual_seed(derive_seed(seed, "evaluation")) for seed in (5, 2**62)]
    drawn = [torch.rand(3, generator=generator) for generator in generators]
    assert all(torch.equal(a, torch.rand(3, generator=b)) for a, b in zip(drawn, expected))
    others = [image_generators([5], purpose)[0].initial_seed() for purpose in (None, "start", "evaluation")]
    assert others == [5, derive_seed(5, "start"), derive_seed(5, "evaluation")]
    # torch's CPU generator uses the low 32 bits alone; `derive_seed` mixes all of them in.
    assert not torch.equal(*(torch.rand(3, generator=image_generators([s], "x")[0]) for s in (5, 5 + 2**32)))


def test_the_global_state_is_restored():
    state = torch.get_rng_state()
    with forked_rng(torch.device("cpu")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_more_than_32_bits_would_be_lost():
    """Why there are seeds of 32 bits, and why seeds that are longer are never used as they are."""
    one, other = (torch.Generator().manual_seed(seed) for seed in (1, 1 + 2**32))
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))
    with pytest.raises(ValueError, match="2\\*\\*32"):
        np.random.seed(2**32)
