# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Pretrain a denoiser by noisy image modeling (NIM, arXiv 2302.01056), or a masked autoencoder as its baseline.

    python examples/pretrain.py --dataset_name DATA --config_name tiny-patch4-32 --output_dir outputs/nim

It is the command `transformers-nim pretrain`; `--help` explains its options.
"""

from transformers_nim.commands.pretrain import main
from transformers_nim.utils.cli import run_command


if __name__ == "__main__":
    run_command(main)
