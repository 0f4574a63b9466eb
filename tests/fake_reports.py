# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Make reports of robustness without a model: by hand, or of simulated images."""

from dataclasses import asdict, replace

import numpy as np

from transformers_nim.robustness import RobustnessReport
from transformers_nim.robustness.protocol import AttackBudget, AttackConfiguration, ModelFacts, Suite
from transformers_nim.utils.text_table import sigma_key


BUDGET = AttackBudget(40, 16, 11, steps=20, num_draws=8, restarts=1, num_queries=1600)


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
        "strength": asdict(BUDGET),
    }
    return base | changes


def hand_made(labels, attacks, **changes):
    """Return a report of a few images.

    Args:
        labels: True classes.
        attacks: Pairs of an [`AttackConfiguration`] and, by sigma, the predictions of each image, with its
            scores where they matter: `{50.0: [([0] * 11, [0.5, 0.1]), ...]}` or `{50.0: [[0] * 11, ...]}`.
        changes: Settings that differ.
    """
    images = [{"row": 10 + index, "image": f"hash{index}", "label": label} for index, label in enumerate(labels)]
    records = []
    for one, by_sigma in attacks:
        for index in range(min(one.num_images, len(labels))):
            found = {sigma_key(sigma): entries[index] for sigma, entries in by_sigma.items()}
            pairs = {key: own if isinstance(own, tuple) else (own, [0.0, 0.0]) for key, own in found.items()}
            records.append(
                {
                    "cell": one.name,
                    "row": 10 + index,
                    "skipped": False,
                    "distance": one.eps / 255,
                    "predictions": {key: own[0] for key, own in pairs.items()},
                    "scores": {key: own[1] for key, own in pairs.items()},
                    "loss": None,
                    "seconds": 0.5,
                }
            )
    return RobustnessReport(settings(**changes), [asdict(one) for one, _ in attacks], images, records)


def attack(name, group="white-box", sigmas=(50.0,), attack_sigma=50.0, eps=8.0, num_images=100, **changes):
    made = AttackConfiguration(name, group, "eot_pgd", eps, num_images, attack_sigma, tuple(sigmas), {"steps": 20})
    return replace(made, **changes)


def simulated(suite="quick", sigma=50.0, sigmas=(None, 0.0, 25.0, 75.0), eps_grid=(2.0, 4.0), seed=0, **changes):
    """Return a report with the attacks of a real evaluation, on images that are more or less robust at random."""
    budget = changes.pop("budget", BUDGET)
    attacks = Suite(suite, budget, ModelFacts(sigma, sigmas, num_labels=10), 8.0, eps_grid).configurations()
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=budget.num_images)
    radius = rng.gamma(2.0, 6.0, size=budget.num_images)
    difficulty = rng.random(budget.num_images)
    images = [{"row": 3 * index, "image": f"{index:08x}", "label": int(label)} for index, label in enumerate(labels)]
    records = []
    for one in attacks:
        strong = {"baseline": 0.5, "black-box": 0.7, "approximate": 0.8, "grid": 0.95}.get(one.group, 1.0)
        for index in range(min(one.num_images, budget.num_images)):
            predictions, scores = {}, {}
            for used in one.defense_sigmas:
                scale = used or 0.0
                gain = 1.0 if used is None else 1.5 + scale / 60
                mismatch = abs(scale - (one.attack_sigma or 0.0)) / 200
                clean = 1 / (1 + np.exp(-(4.5 - 0.04 * scale - 2.5 * difficulty[index]) * 2))
                left = 1 / (1 + np.exp(-(radius[index] * gain - one.eps * (strong - mismatch)) / 2))
                share = clean * left * (1 / (1 + np.exp(-radius[index] * gain / 2)) / left if one.eps == 0 else 1)
                number = budget.num_evaluations if used and not one.fixed_noise else 1
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
    chosen = settings(suite=suite, sigma=sigma, sigmas=[sigma, *sigmas], strength=asdict(budget), **changes)
    return RobustnessReport(
        chosen,
        [asdict(one) for one in attacks],
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
