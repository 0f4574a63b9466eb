# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure how robust an image classifier is, by a suite of attacks that does not flatter random defenses.

    accelerate launch examples/evaluate_robustness.py --model_name_or_path MODEL --dataset_name DATA --output_dir DIR

The command is `transformers_nim.commands.evaluate`; `--help` explains its options.
"""

from transformers_nim.commands.evaluate import main


if __name__ == "__main__":
    main()
