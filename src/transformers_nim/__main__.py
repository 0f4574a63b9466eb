# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Run a command: `python -m transformers_nim COMMAND`, which is `transformers-nim COMMAND`."""

from transformers_nim_cli import main


if __name__ == "__main__":
    main()
