# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The commands of `transformers-nim`, each a module with a `main(argv)`; the scripts in `examples/` call them too.

Called from Python, `main` returns what the command has made, and raises; see [`run_command`](../utils/cli.py) for what
a command line shows of errors.
"""
