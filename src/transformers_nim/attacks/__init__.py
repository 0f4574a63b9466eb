# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Adversarial attacks on classifiers whose predictions may be random.

Every attack has a name and one signature; see [`make_attack`]. Losses are averaged over draws of the defense's noise,
for the gradient and for the choice of the best point alike.
"""

from ..utils.seeding import image_generators, image_seeds
from .adapter import PixelClassifier
from .adaptive import low_frequency, patch_statistics, vote
from .apgd import eot_apgd, eot_apgd_ce, eot_apgd_dlr
from .blackbox import no_attack, square, transfer, uniform_noise
from .external import autoattack, torchattacks_eotpgd, torchattacks_fgsm, torchattacks_pgd
from .geometry import Ball
from .losses import adversarial_loss
from .pgd import eot_pgd, fgsm, pgd
from .randomness import draw_logits
from .registry import Attack, attack_options, available_attacks, make_attack, register_attack


__all__ = [
    "Attack",
    "Ball",
    "PixelClassifier",
    "adversarial_loss",
    "attack_options",
    "autoattack",
    "available_attacks",
    "draw_logits",
    "eot_apgd",
    "eot_apgd_ce",
    "eot_apgd_dlr",
    "eot_pgd",
    "fgsm",
    "image_generators",
    "image_seeds",
    "low_frequency",
    "make_attack",
    "no_attack",
    "patch_statistics",
    "pgd",
    "register_attack",
    "square",
    "torchattacks_eotpgd",
    "torchattacks_fgsm",
    "torchattacks_pgd",
    "transfer",
    "uniform_noise",
    "vote",
]
