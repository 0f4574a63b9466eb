# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Adversarial attacks on classifiers whose predictions may be random."""

from .adapter import PixelClassifier
from .gradient import eot_pgd


__all__ = ["PixelClassifier", "eot_pgd"]
