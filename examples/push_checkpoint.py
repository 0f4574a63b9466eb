# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Publish a checkpoint with its card and results on the Hub. Without --push nothing is sent.

    python examples/push_checkpoint.py FOLDER --repo_id OWNER/NAME

The command is `transformers_nim.commands.push`; `--help` explains its options.
"""

import sys

from transformers_nim.commands.push import main


if __name__ == "__main__":
    sys.exit(main())
