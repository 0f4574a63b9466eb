# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Command lines, each a module with a `main(argv)`; the scripts in `examples/` call them."""
