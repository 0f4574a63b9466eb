# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure how robust an image classifier is, by a suite of attacks that does not flatter random defenses.

    python examples/evaluate_robustness.py --model_name_or_path MODEL --dataset_name DATA --output_dir DIR

It is the command `transformers-nim evaluate`; `--help` explains its options.
"""

from transformers_nim.commands.evaluate import main
from transformers_nim.utils.cli import run_command


if __name__ == "__main__":
    run_command(main)
