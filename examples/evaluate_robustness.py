# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""How robust an image classifier is, by a suite of attacks that does not flatter random defenses.

All is in `transformers_nim.commands.evaluate`; `--help` says what it takes.
"""

from transformers_nim.commands.evaluate import main


if __name__ == "__main__":
    main()
