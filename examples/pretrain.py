# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Pretrains a denoiser by noisy image modeling (NIM, arXiv 2302.01056), or a masked autoencoder as its baseline.

All is in `transformers_nim.commands.pretrain`; `--help` says what it takes.
"""

from transformers_nim.commands.pretrain import main


if __name__ == "__main__":
    main()
