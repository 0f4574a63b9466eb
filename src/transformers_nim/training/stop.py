# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Let processes that train together agree on the step after which a signal stops them."""

from collections import deque
from typing import Any

import torch

from ..utils.interruption import signaled


# Updates after which a sum is read that an accelerator makes: it has finished it by then, so nobody waits for it.
_LAG = 2


class StopVote:
    """The question, asked with every update, whether a signal has come to one of the processes.

    All of them must stop after the same step, but a signal reaches one earlier than another. So each update adds up
    what all processes say, together with the loss; nobody reads the sum before it is known.

    Args:
        accelerator: Accelerator of the processes.
    """

    def __init__(self, accelerator: Any):
        self.num_processes = accelerator.num_processes
        self._lag = 0 if accelerator.device.type == "cpu" else _LAG
        self._sums: deque[tuple[torch.Tensor, Any]] = deque()

    def own(self, like: torch.Tensor) -> torch.Tensor:
        """Return 1 if a signal has come to this process, else 0, of shape, type and device of a tensor."""
        return torch.full_like(like, float(signaled() is not None))

    def add(self, reduced: torch.Tensor) -> None:
        """Take the sum or mean over all processes of an update; it is not waited for."""
        event = None
        if reduced.device.type != "cpu":
            event = torch.Event(reduced.device)
            reduced = reduced.to("cpu", non_blocking=True)
            event.record()
        self._sums.append((reduced, event))

    def is_stop(self) -> bool:
        """Return whether to stop after this update; all processes get the same answer."""
        if self.num_processes == 1:
            return signaled() is not None
        if len(self._sums) <= self._lag:
            return False
        reduced, event = self._sums.popleft()
        if event is not None:
            event.synchronize()
        return reduced.item() > 0
