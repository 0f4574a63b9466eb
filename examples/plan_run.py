# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Plan a long run before GPUs are paid for: FLOPs, hours, memory, the largest batch that fits, and the command.

    python examples/plan_run.py

The command is `transformers_nim.commands.plan`; `--help` explains its options.
"""

from transformers_nim.commands.plan import main


if __name__ == "__main__":
    main()
