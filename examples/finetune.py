# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a pretrained model to classify: with the De^3 defense (arXiv 2302.01056), or as one of its baselines.

    accelerate launch examples/finetune.py --model_name_or_path outputs/nim --dataset_name DATA --output_dir DIR

The command is `transformers_nim.commands.finetune`; `--help` explains its options.
"""

from transformers_nim.commands.finetune import main


if __name__ == "__main__":
    main()
