# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a pretrained model to classify: with the De^3 defense (arXiv 2302.01056), or as one of its baselines.

    python examples/finetune.py --model_name_or_path outputs/nim --dataset_name DATA --output_dir DIR

It is the command `transformers-nim finetune`; `--help` explains its options.
"""

from transformers_nim.commands.finetune import main
from transformers_nim.utils.cli import run_command


if __name__ == "__main__":
    run_command(main)
