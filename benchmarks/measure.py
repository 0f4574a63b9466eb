# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Time two ways to do the same work, each in a process of its own, in turns.

A process of its own keeps one side from changing the allocator, the threads and the caches of the other, and its peak
memory can be read at its end. Turns are fair to both when the machine slows down or speeds up.
"""

import gc
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch


# Short work is repeated until a measurement takes about this long.
MIN_SECONDS = 0.3
# Work that takes longer warms up once instead of three times. Also the limit on trying matrix products of a dtype.
_LONG_SECONDS = 5.0
# The calling process's own (proc(5)).
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Work:
    """Work to time.

    Attributes:
        run: Does the work once.
        items: Images (or noisy images) per run.
        flops: Floating point operations of matrix products per run; 0 if they are not counted.
        facts: Other figures, by name; filled by `run`.
        warm_up: A short form of the work, for work that is long enough to be measured once.
    """

    run: Callable[[], object]
    items: int = 1
    flops: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)
    warm_up: Callable[[], object] | None = None


# Prepares work: a function at the top of a module, with its arguments, so that another process can be given it.
Case: TypeAlias = partial[Work]


class Worker:
    """A process that prepares a case and does its work on request.

    A context manager: the process ends with the context.
    """

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
        # It still waits for requests if another worker failed.
        self._process.terminate()
        self._process.join()

    def seconds(self) -> float:
        """Do the work as often as it takes to measure it. Return the seconds of one run."""
        return self._ask("run")

    def warm_up(self) -> None:
        """Do the work until its memory has settled, and find out how often a measurement has to repeat it."""
        self._ask("warm up")

    def close(self) -> dict[str, Any]:
        """End the process. Return its items, flops, facts and `peak_memory_mb`."""
        report = self._ask("close")
        self._process.join()
        return report

    def _ask(self, question: str | None) -> Any:
        try:
            if question is not None:
                self._pipe.send(question)
            kind, value = self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError("a measured process ended by itself; check that there is enough memory") from error
        if kind == "error":
            self._process.join()
            raise RuntimeError(value)
        return value


def _serve(pipe: Any, case: Case, num_threads: int | None) -> None:
    try:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        work = case()
        _forget_peak_memory()
        pipe.send(("ready", None))
        repeats = 1
        while (question := pipe.recv()) != "close":
            if question == "run":
                pipe.send(("seconds", _time(work.run, repeats)))
            elif work.warm_up is not None:
                pipe.send(("seconds", _time(work.warm_up, 1)))
            else:
                # The first run takes longer. It matters less for long work.
                for _ in range(3):
                    seconds = _time(work.run, 1)
                    repeats = max(1, math.ceil(MIN_SECONDS / seconds))
                    if seconds > _LONG_SECONDS:
                        break
                pipe.send(("seconds", None))
    except Exception as error:
        pipe.send(("error", f"{case.func.__name__}: {type(error).__name__}: {error}"))
        raise
    report = {"items": work.items, "flops": work.flops, "facts": work.facts, "peak_memory_mb": _peak_memory_mb()}
    pipe.send(("report", report))


def _forget_peak_memory() -> None:
    # Preparing may have held two models at once.
    gc.collect()
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def _peak_memory_mb() -> int | None:
    """Return the peak resident memory since `_forget_peak_memory`; None except on Linux."""
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
    """Time two cases in turns.

    Args:
        ours: The package's way.
        alternative: What it is compared with.
        repetitions: Pairs of measurements.
        on_step: Called after each pair.

    Returns:
        `ratio` (the alternative's seconds over ours, median of the pairs), `spread` (the quartiles of the ratios),
        `seconds` of both, and what the workers report. If the cases set the fact `cost`, `cost_ratio` is the
        alternative's cost over ours.
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
    """Return the median seconds of one case by itself, with its report."""
    with Worker(case, num_threads) as worker:
        worker.warm_up()
        seconds = [worker.seconds() for _ in range(repetitions)]
        return {"seconds": float(np.median(seconds)), **worker.close()}


def matmul_peaks(repetitions: int = 5) -> dict[str, float]:
    """Return the most operations per second that matrix products reach, by dtype.

    Square matrices and those of a ViT-B's MLP are tried. The larger ones are left out once the smaller have taken some
    seconds: a dtype that the processor lacks is emulated at a hundredth of the speed.
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
    """Return the slope of a line through the logarithms: 1 means that twice the size takes twice the time."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
