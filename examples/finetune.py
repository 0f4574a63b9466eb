# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes a pretrained model to classify: with the De^3 defense (arXiv 2302.01056), or as one of its baselines.

All is in `transformers_nim.commands.finetune`; `--help` says what it takes.
"""

from transformers_nim.commands.finetune import main


if __name__ == "__main__":
    main()
