# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Check arguments that many functions share."""

from numbers import Integral


def check_counts(**counts: int | None) -> None:
    """Check that every argument is an int of at least 1. `None` is accepted.

    Raises:
        ValueError: An argument is something else; the message names it.
    """
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")


def check_vote(vote: str | None) -> None:
    """Check how noise draws are combined. `None` is accepted.

    Raises:
        ValueError: It is neither `"mean"` nor `"majority"`.
    """
    if vote not in (None, "mean", "majority"):
        raise ValueError(f'vote must be "mean" or "majority", got {vote!r}')
