# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What a user does: each module is a command line with a `main(argv)`; the scripts in `examples/` call them."""
