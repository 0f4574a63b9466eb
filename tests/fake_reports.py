# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Reports of robustness without a model: made by hand, or of simulated images."""

from dataclasses import asdict, replace

import numpy as np

from transformers_nim.robustness import RobustnessReport
from transformers_nim.robustness.protocol import Cell, Strength, make_suite, sigma_key


STRENGTH = Strength(40, 16, 11, steps=20, num_draws=8, restarts=1, num_queries=1600)


def settings(**changes):
    base = {
        "suite": "quick",
        "model": "outputs/quickstart",
        "model_class": "NIMForRobustImageClassification",
        "model_hash": "0123456789abcdef",
        "dataset": "digits",
        "split": "test",
        "norm": "Linf",
        "eps": 8.0,
        "sigma": 50.0,
        "sigmas": [50.0],
        "seed": 0,
        "dtype": "float32",
        "strength": asdict(STRENGTH),
    }
    return base | changes


def hand_made(labels, cells, **changes):
    """A report of a few images.

    Args:
        labels: True classes.
        cells: For each cell: a [`Cell`], and by sigma the predictions of each image, with its scores where they
            matter: `{50.0: [([0] * 11, [0.5, 0.1]), ...]}` or `{50.0: [[0] * 11, ...]}`.
        changes: Settings that differ.
    """
    images = [{"row": 10 + index, "image": f"hash{index}", "label": label} for index, label in enumerate(labels)]
    records = []
    for cell, by_sigma in cells:
        for index in range(min(cell.num_images, len(labels))):
            found = {sigma_key(sigma): entries[index] for sigma, entries in by_sigma.items()}
            pairs = {key: one if isinstance(one, tuple) else (one, [0.0, 0.0]) for key, one in found.items()}
            records.append(
                {
                    "cell": cell.name,
                    "row": 10 + index,
                    "skipped": False,
                    "distance": cell.eps / 255,
                    "predictions": {key: one[0] for key, one in pairs.items()},
                    "scores": {key: one[1] for key, one in pairs.items()},
                    "loss": None,
                    "seconds": 0.5,
                }
            )
    return RobustnessReport(settings(**changes), [asdict(cell) for cell, _ in cells], images, records)


def cell(name, group="white-box", sigmas=(50.0,), attack_sigma=50.0, eps=8.0, num_images=100, **changes):
    made = Cell(name, group, "eot_pgd", eps, num_images, attack_sigma, tuple(sigmas), {"steps": 20})
    return replace(made, **changes)


def simulated(suite="quick", sigma=50.0, sigmas=(None, 0.0, 25.0, 75.0), eps_grid=(2.0, 4.0), seed=0, **changes):
    """A report with the cells of a real evaluation, whose images are more or less robust at random."""
    strength = changes.pop("strength", STRENGTH)
    cells = make_suite(suite, strength, eps=8.0, sigma=sigma, sigmas=sigmas, eps_grid=eps_grid, num_labels=10)
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=strength.num_images)
    radius = rng.gamma(2.0, 6.0, size=strength.num_images)
    difficulty = rng.random(strength.num_images)
    images = [{"row": 3 * index, "image": f"{index:08x}", "label": int(label)} for index, label in enumerate(labels)]
    records = []
    for one in cells:
        strong = {"baseline": 0.5, "black-box": 0.7, "approximate": 0.8, "grid": 0.95}.get(one.group, 1.0)
        for index in range(min(one.num_images, strength.num_images)):
            predictions, scores = {}, {}
            for used in one.defense_sigmas:
                scale = used or 0.0
                gain = 1.0 if used is None else 1.5 + scale / 60
                mismatch = abs(scale - (one.attack_sigma or 0.0)) / 200
                clean = 1 / (1 + np.exp(-(4.5 - 0.04 * scale - 2.5 * difficulty[index]) * 2))
                left = 1 / (1 + np.exp(-(radius[index] * gain - one.eps * (strong - mismatch)) / 2))
                share = clean * left * (1 / (1 + np.exp(-radius[index] * gain / 2)) / left if one.eps == 0 else 1)
                number = strength.num_evaluations if used and not one.fixed_noise else 1
                threshold = rng.random(number) if number > 1 else np.full(1, 0.5)
                right = threshold < share
                predictions[sigma_key(used)] = [int(labels[index] + (0 if own else 1)) % 10 for own in right]
                scores[sigma_key(used)] = [float(1 - share), float(1 - 2 * share)]
            records.append(
                {
                    "cell": one.name,
                    "row": 3 * index,
                    "skipped": False,
                    "distance": one.eps / 255,
                    "predictions": predictions,
                    "scores": scores,
                    "loss": [0.1, 1.2],
                    "seconds": 0.25,
                }
            )
    chosen = settings(suite=suite, sigma=sigma, sigmas=[sigma, *sigmas], strength=asdict(strength), **changes)
    return RobustnessReport(
        chosen,
        [asdict(one) for one in cells],
        images,
        records,
        versions={"transformers_nim": "0.1.0"},
        wall_time=12.5,
        left_out=["transfer attacks: no other model was named"],
        cut=["Square: 400 queries instead of 1,600"],
        checks=[
            {"name": "unbounded", "passed": True, "detail": "0.0 % are left"},
            {"name": "monotone", "passed": False, "detail": "eps 4 is below eps 8"},
            {"name": "transfer is weaker", "passed": None, "detail": "no transfer attack"},
        ],
        classes=[str(digit) for digit in range(10)],
    )
