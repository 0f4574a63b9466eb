# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""End a command by a signal: at once, or at the next point from which it can be gone on with.

Ctrl-C sends SIGINT; batch systems send SIGTERM before they take a machine away, and SIGUSR1 to those who ask for it
(SLURM's `--signal=USR1@60`). All three end a command in the same way.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
# A request that never ends a process at once, however often it comes.
_GENTLE = getattr(signal, "SIGUSR1", None)
# Seconds in which a signal is the same as the one before: a launcher passes on what the terminal has sent already, on
# a busy machine late, and `timeout` sends its signal twice.
_SAME = 5.0
# `prctl(PR_SET_PDEATHSIG, ...)` of Linux.
_PR_SET_PDEATHSIG = 1


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command.

    Args:
        number: The signal.
        kept: What is done and kept, as a sentence without a full stop.
        options: Options, with their values, with which the same command goes on; none if there is no way.
        without: Options that it must not have then.
    """

    def __init__(self, number: int, kept: str = "", options: Sequence[str] = (), without: Sequence[str] = ()):
        by = f"by {signal.Signals(number).name}"
        if number == _GENTLE and _state.parent not in (None, os.getppid()):
            by = "as its launcher has ended"
        super().__init__(f"interrupted {by}" + (f"; {kept}" if kept else ""))
        self.number, self.kept, self.options, self.without = number, kept, tuple(options), tuple(without)

    @classmethod
    def of(cls, error: KeyboardInterrupt, kept: str, options: Sequence[str]) -> "Interrupted":
        """Return what `error` says, with what is kept."""
        return cls(getattr(error, "number", signal.SIGINT), kept, options)


@dataclass
class _State:
    """The signals that have come to this process, and what is to be done with them.

    Attributes:
        number: The first signal; the first that was not the gentle one, once there is one.
        since: When it came.
        is_deferred: Whether signals are noted only.
        parent: The process whose end sends a signal.
        is_postponed: Whether signals are to be caught only once there is something to keep.
    """

    number: int | None = None
    since: float = 0.0
    is_deferred: bool = False
    parent: int | None = None
    is_postponed: bool = False


_state = _State()


def _handle(number: int, frame: FrameType | None) -> None:
    now, before = time.monotonic(), _state.number
    if before is not None and number == _GENTLE:
        return
    # After the gentle one the first of the others asks for the same, not for more: SLURM sends both.
    if before not in (None, _GENTLE):
        if now - _state.since > _SAME:
            end_by(number)
        return
    _state.number, _state.since = number, now
    if not _state.is_deferred:
        if before is None:
            raise Interrupted(number)
    elif os.environ.get("RANK", "0") == "0" and number != _GENTLE:
        # Not `print`, which may be at work just now.
        text = f"\ninterrupted: stopping as soon as all can be kept; once more, after {_SAME:.0f} s, ends at once\n"
        os.write(2, text.encode())


def end_by(number: int) -> None:
    """End this process by a signal, as if it had never been caught."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def catch_signals() -> dict[int, Any]:
    """Make the first signal raise [`Interrupted`], and a second SIGINT or SIGTERM end this process at once.

    SIGUSR1 counts as neither: after it, the first of the two is not yet the second.

    Signals that are ignored, as by `nohup` or in the background of a script, stay so.

    Returns:
        The handlers of before, by signal; none outside of the main thread, where there can be none.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, _handle) for number in numbers}


def postpone_signals() -> None:
    """Leave signals uncaught up to [`catch_postponed`] or [`deferred_signals`], in one of several processes.

    When one of them fails, its launcher sends SIGTERM to the others, which mostly wait for it, in a collective or for
    the network. There a caught signal is not handled, and the launcher kills them only after 30 seconds. An uncaught
    one ends them at once. So signals are caught no earlier than there is something to keep. From then on, as during a
    training, processes that wait in a collective which does not notice the error do stay for those 30 seconds.
    """
    _state.is_postponed = True


def catch_postponed() -> None:
    """Catch signals from here on, where there is something to keep, if [`postpone_signals`] was called."""
    if _state.is_postponed:
        catch_signals()


def release_signals() -> None:
    """Let signals end this process as if they had never been caught."""
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Note signals in a `with` block, for [`signaled`], instead of raising [`Interrupted`].

    Blocks may lie in each other; the outermost one counts.

    Raises:
        Interrupted: A signal has come, and the outermost block has ended without an error.
    """
    catch_postponed()
    is_within = _state.is_deferred
    before, _state.is_deferred = catch_signals(), True
    try:
        yield
    finally:
        _state.is_deferred = is_within
        noted = None if is_within else _state.number
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if any(handler is not _handle for handler in before.values()):
            # Whoever goes on after this is not ended by what has come before.
            _state.number = None
    if noted is not None:
        # Too late for whoever has looked last. Or nobody would ever be told.
        raise Interrupted(noted)


def signaled() -> int | None:
    """Return the signal that has come to this process, or None."""
    return _state.number


def raise_if_signaled(accelerator: Any) -> None:
    """Raise [`Interrupted`] in all processes, if a signal has come to one of them; called by all, who wait for it.

    Args:
        accelerator: Accelerator of the processes.
    """
    flag = float(_state.number is not None)
    if accelerator.num_processes > 1:
        flag = accelerator.reduce(torch.full((), flag, device=accelerator.device), "sum").item()
    if flag:
        raise Interrupted(_state.number or signal.SIGTERM)


def end_with_parent() -> None:
    """Have SIGUSR1 sent to this process when its parent ends, as launchers do that pass no signal on. Linux only."""
    if sys.platform == "linux":
        _state.parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)


def outlive_signals(_: int = 0) -> None:
    """Keep a worker process at work while its parent ends by a signal that was sent to both; called in the worker.

    Whoever has to wait for a worker that was ended gets an error instead of the next batch.
    """
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        # The parent may want to end it in this way, too: it has a minute for what it has begun, then SIGALRM ends it.
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
