# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Publishes a checkpoint with its card and results on the Hub. Without --push nothing is sent.

All is in `transformers_nim.commands.push`; `--help` says what it takes.
"""

import sys

from transformers_nim.commands.push import main


if __name__ == "__main__":
    sys.exit(main())
