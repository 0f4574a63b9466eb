# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts in `examples/` share: data, augmentation, optimizer, checkpoints, validation, the loop."""
