# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Adversarial attacks on classifiers whose predictions may be random.

An attack is a frozen dataclass of its options, and is called like every other: `EOTPGD(steps=20)(classifier, pixels,
labels, eps=8 / 255)`; see [`Attack`]. [`make_attack`] makes it by name. Losses are averaged over noise draws, for the
gradient and for the choice of the best point alike.
"""

from ..model.pixel_classifier_nim import PixelClassifier
from ..utils.seeding import image_generators, image_seeds
from .adaptive import LowFrequency, PatchStatistics
from .apgd import EOTAPGD, EOTAPGDCE, EOTAPGDDLR, TargetedAPGD
from .blackbox import NoAttack, Square, Transfer, UniformNoise
from .external import AutoAttack, TorchattacksEOTPGD, TorchattacksFGSM, TorchattacksPGD
from .geometry import Ball
from .losses import adversarial_loss
from .pgd import EOTPGD, FGSM, PGD, Vote
from .randomness import draw_logits
from .registry import Attack, attack_options, available_attacks, make_attack, register_attack
from .restarts import GradientAttack


__all__ = [
    "EOTAPGD",
    "EOTAPGDCE",
    "EOTAPGDDLR",
    "EOTPGD",
    "FGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Ball",
    "GradientAttack",
    "LowFrequency",
    "NoAttack",
    "PatchStatistics",
    "PixelClassifier",
    "Square",
    "TargetedAPGD",
    "TorchattacksEOTPGD",
    "TorchattacksFGSM",
    "TorchattacksPGD",
    "Transfer",
    "UniformNoise",
    "Vote",
    "adversarial_loss",
    "attack_options",
    "available_attacks",
    "draw_logits",
    "image_generators",
    "image_seeds",
    "make_attack",
    "register_attack",
]
