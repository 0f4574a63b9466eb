# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Train models: objectives, loop, optimizer, checkpoints, validation, plots."""

from .attack import TrainingAttack
from .perturb import perturb_batch


__all__ = ["TrainingAttack", "perturb_batch"]
