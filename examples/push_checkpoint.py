# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Publish a checkpoint with its card and results on the Hub. Without --push nothing is sent.

    python examples/push_checkpoint.py FOLDER --repo_id OWNER/NAME

It is the command `transformers-nim push`; `--help` explains its options.
"""

from transformers_nim.commands.push import main
from transformers_nim.utils.cli import run_command


if __name__ == "__main__":
    run_command(main)
