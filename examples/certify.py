# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Certify the accuracy of De^3 over a data set (randomized smoothing, arXiv 1902.02918), which no attack can lower.

    python examples/certify.py --model_name_or_path MODEL --dataset_name DATA --output_dir DIR

It is the command `transformers-nim certify`; `--help` explains its options.
"""

from transformers_nim.commands.certify import main
from transformers_nim.utils.cli import run_command


if __name__ == "__main__":
    run_command(main)
