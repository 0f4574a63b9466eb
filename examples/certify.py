# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Certified accuracy of De^3 over a data set (randomized smoothing, arXiv 1902.02918), which no attack can lower.

All is in `transformers_nim.commands.certify`; `--help` says what it takes.
"""

from transformers_nim.commands.certify import main


if __name__ == "__main__":
    main()
