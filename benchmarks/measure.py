# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Timing of two ways to do the same work, each in a process of its own, in turns.

A process of its own, because what one side does to the allocator, to threads and to caches is not to help or to hurt
the other, and because its peak memory can be read at its end. In turns, because machines slow down and speed up.
"""

import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch


# A measurement repeats the work until it has taken about so long.
MIN_SECONDS = 0.3
# Work that takes longer is done once to warm up, other work three times.
_LONG_SECONDS = 10.0


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        run: Does it once.
        items: How many images (or noisy images) that are.
        flops: Floating point operations of matrix products; 0 if they are not counted.
        facts: Other figures, by name, known once it has run.
        warm_up: A short form of it, where once is long enough to be measured.
    """

    run: Callable[[], object]
    items: int = 1
    flops: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)
    warm_up: Callable[[], object] | None = None


@dataclass(frozen=True)
class Case:
    """A function of `cases` that prepares some [`Work`], and its arguments."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> Work:
        return getattr(import_module("cases"), self.function)(**self.arguments)


class Worker:
    """A process that prepares a case and does its work when it is asked to."""

    def __init__(self, case: Case, num_threads: int | None = None):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, case, num_threads), daemon=False)
        self._process.start()
        theirs.close()
        self._ask(None)

    def seconds(self) -> float:
        """Does the work, as often as it takes to measure it, and returns the seconds of doing it once."""
        return self._ask("run")

    def warm_up(self) -> None:
        """Does the work until its memory has settled, and finds out how often a measurement has to repeat it."""
        self._ask("warm up")

    def close(self) -> dict[str, Any]:
        """Ends the process. Returns items, flops, facts and `peak_memory_mb`."""
        report = self._ask("close")
        self._process.join()
        return report

    def _ask(self, question: str | None) -> Any:
        try:
            if question is not None:
                self._pipe.send(question)
            kind, value = self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError("a measured process ended by itself; was there enough memory?") from error
        if kind == "error":
            self._process.join()
            raise RuntimeError(value)
        return value


def _serve(pipe: Any, case: Case, num_threads: int | None) -> None:
    try:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        work = case.prepare()
        pipe.send(("ready", None))
        repeats = 1
        while (question := pipe.recv()) != "close":
            if question == "run":
                pipe.send(("seconds", _time(work.run, repeats)))
            elif work.warm_up is not None:
                pipe.send(("seconds", _time(work.warm_up, 1)))
            else:
                # The first time takes longer; work that takes long shows it less.
                for _ in range(3):
                    seconds = _time(work.run, 1)
                    repeats = max(1, math.ceil(MIN_SECONDS / seconds))
                    if seconds > _LONG_SECONDS:
                        break
                pipe.send(("seconds", None))
    except Exception as error:
        pipe.send(("error", f"{case.function}: {type(error).__name__}: {error}"))
        raise
    # In kilobytes, except on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    report = {"items": work.items, "flops": work.flops, "facts": work.facts, "peak_memory_mb": round(peak)}
    pipe.send(("report", report))


def _time(run: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def compare(
    ours: Case, alternative: Case, repetitions: int, on_step: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Times two cases in turns.

    Returns:
        `ratio` (the alternative's seconds over ours, median of the pairs), `spread` (its quartiles), `seconds` of both
        and what the workers report. Where a case counts a cost of its own, under the fact `cost`, `cost_ratio` is the
        ratio of these.
    """
    # One after the other: both prepare with all threads.
    workers = [Worker(ours), Worker(alternative)]
    for worker in workers:
        worker.warm_up()
    pairs = []
    for _ in range(repetitions):
        pairs.append([worker.seconds() for worker in workers])
        if on_step is not None:
            on_step()
    own, other = (worker.close() for worker in workers)
    times = np.array(pairs)
    ratios = times[:, 1] / times[:, 0]
    row = {
        "ratio": float(np.median(ratios)),
        "spread": [float(value) for value in np.quantile(ratios, [0.25, 0.75])],
        "seconds": {"ours": float(np.median(times[:, 0])), "alternative": float(np.median(times[:, 1]))},
        "items": own["items"],
        "flops": own["flops"],
        "peak_memory_mb": {"ours": own["peak_memory_mb"], "alternative": other["peak_memory_mb"]},
    }
    if "cost" in own["facts"]:
        row["cost_ratio"] = other["facts"]["cost"] / own["facts"]["cost"]
    return row


def measure_alone(case: Case, repetitions: int, num_threads: int | None = None) -> dict[str, Any]:
    """Median seconds of one case by itself, and its report."""
    worker = Worker(case, num_threads)
    worker.warm_up()
    seconds = [worker.seconds() for _ in range(repetitions)]
    return {"seconds": float(np.median(seconds)), **worker.close()}


def matmul_peaks(repetitions: int = 5) -> dict[str, float]:
    """The most operations per second that products of square matrices reach, by dtype and over several sizes."""
    peaks = {}
    for name in ("float32", "bfloat16"):
        rates = []
        for size in (512, 1024, 2048):
            left, right = (torch.randn(size, size).to(getattr(torch, name)) for _ in range(2))
            repeats = max(1, round(4e9 / size**3))
            _time(lambda a=left, b=right: a @ b, repeats)
            seconds = [_time(lambda a=left, b=right: a @ b, repeats) for _ in range(repetitions)]
            rates.append(2 * size**3 / float(np.median(seconds)))
        peaks[name] = max(rates)
    return peaks


def fit_exponent(sizes: list[float], seconds: list[float]) -> float:
    """The slope of a line through the logarithms: 1 means that twice the size takes twice the time."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
