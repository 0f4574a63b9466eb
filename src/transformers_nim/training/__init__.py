# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Train models: objectives, loop, optimizer, checkpoints, validation, plots."""
