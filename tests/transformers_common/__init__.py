# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""transformers' own tests, run on NIM."""
