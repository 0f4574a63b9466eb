# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Timing of two ways to do the same work, each in a process of its own, in turns.

A process of its own, because what one side does to the allocator, to threads and to caches is not to help or to hurt
the other, and because its peak memory can be read at its end. In turns, because machines slow down and speed up.
"""

import gc
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch


# A measurement repeats the work until it has taken about so long.
MIN_SECONDS = 0.3
# Work that takes longer is done once to warm up, other work three times; no further products are tried after it.
_LONG_SECONDS = 5.0
# Of the process that asks (proc(5)).
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


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
    """A process that prepares a case and does its work when it is asked to. A context, at whose end it ends too."""

    def __init__(self, case: Case, num_threads: int | None = None):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, case, num_threads), daemon=False)
        self._process.start()
        theirs.close()
        self._ask(None)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        # After an error of another one it still waits to be asked.
        self._process.terminate()
        self._process.join()

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
        _forget_peak_memory()
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
    report = {"items": work.items, "flops": work.flops, "facts": work.facts, "peak_memory_mb": _peak_memory_mb()}
    pipe.send(("report", report))


def _forget_peak_memory() -> None:
    # Before this, there were models that weights were copied from.
    gc.collect()
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def _peak_memory_mb() -> int | None:
    """Peak resident memory since it was forgotten; None where Linux is not there to tell."""
    if not _STATUS.exists():
        return None
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024)


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
    # Prepared one after the other, each with all threads.
    with Worker(ours) as own, Worker(alternative) as other:
        workers, pairs = (own, other), []
        for worker in workers:
            worker.warm_up()
        for _ in range(repetitions):
            pairs.append([worker.seconds() for worker in workers])
            if on_step is not None:
                on_step()
        own_report, other_report = (worker.close() for worker in workers)
    times = np.array(pairs)
    ratios = times[:, 1] / times[:, 0]
    row = {
        "ratio": float(np.median(ratios)),
        "spread": [float(value) for value in np.quantile(ratios, [0.25, 0.75])],
        "seconds": {"ours": float(np.median(times[:, 0])), "alternative": float(np.median(times[:, 1]))},
        "items": own_report["items"],
        "flops": own_report["flops"],
        "peak_memory_mb": {"ours": own_report["peak_memory_mb"], "alternative": other_report["peak_memory_mb"]},
    }
    if "cost" in own_report["facts"]:
        row["cost_ratio"] = other_report["facts"]["cost"] / own_report["facts"]["cost"]
    return row


def measure_alone(case: Case, repetitions: int, num_threads: int | None = None) -> dict[str, Any]:
    """Median seconds of one case by itself, and its report."""
    with Worker(case, num_threads) as worker:
        worker.warm_up()
        seconds = [worker.seconds() for _ in range(repetitions)]
        return {"seconds": float(np.median(seconds)), **worker.close()}


def matmul_peaks(repetitions: int = 5) -> dict[str, float]:
    """The most operations per second that matrix products reach, by dtype, over square matrices and a ViT-B's MLP.

    Larger ones are left out once these have taken some seconds: where a processor lacks a dtype, its products are
    emulated, at a hundredth of the speed.
    """
    peaks = {}
    for name in ("float32", "bfloat16"):
        rates: list[float] = []
        started = time.perf_counter()
        for rows, inner, columns in ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (1576, 768, 3072)):
            if rates and time.perf_counter() - started > _LONG_SECONDS:
                break
            left, right = (torch.randn(*shape).to(getattr(torch, name)) for shape in ((rows, inner), (inner, columns)))
            multiply = partial(torch.mm, left, right, out=left @ right)
            repeats = max(1, round(0.05 / _time(multiply, 1)))
            seconds = [_time(multiply, repeats) for _ in range(repetitions)]
            rates.append(2 * rows * inner * columns / float(np.median(seconds)))
        peaks[name] = max(rates)
    return peaks


def fit_exponent(sizes: list[float], seconds: list[float]) -> float:
    """The slope of a line through the logarithms: 1 means that twice the size takes twice the time."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
