# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Plans a long run before GPUs are paid for: FLOPs, hours, memory, the largest batch that fits, and the command.

All is in `transformers_nim.commands.plan`; `--help` says what it takes.
"""

from transformers_nim.commands.plan import main


if __name__ == "__main__":
    main()
