# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Plan a long run before GPUs are paid for: FLOPs, hours, memory, the largest batch that fits, and the command.

    python examples/plan_run.py

It is the command `transformers-nim plan`; `--help` explains its options.
"""

from transformers_nim.commands.plan import main
from transformers_nim.utils.cli import run_command


if __name__ == "__main__":
    run_command(main)
