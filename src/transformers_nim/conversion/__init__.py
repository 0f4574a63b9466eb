# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Convert checkpoints of the authors' code and of ViT-MAE, and back: `python -m transformers_nim.conversion`."""

from .authors import (
    convert_authors_checkpoint,
    convert_authors_state_dict,
    save_authors_checkpoint,
    save_bfloat16,
    to_authors_state_dict,
)
from .vit_mae import convert_vit_mae_state_dict, load_vit_mae


__all__ = [
    "convert_authors_checkpoint",
    "convert_authors_state_dict",
    "convert_vit_mae_state_dict",
    "load_vit_mae",
    "save_authors_checkpoint",
    "save_bfloat16",
    "to_authors_state_dict",
]
