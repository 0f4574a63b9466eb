# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Signals end a command at once or where it can be gone on with; with real signals, to real processes."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from transformers_nim.utils import interruption
from transformers_nim.utils.interruption import (
    SIGNALS,
    Interrupted,
    catch_signals,
    deferred_signals,
    raise_if_signaled,
    signaled,
)


ONE = SimpleNamespace(num_processes=1, device=torch.device("cpu"))


@pytest.mark.parametrize("number", SIGNALS)
def test_deferred_and_then_raised(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    name = signal.Signals(number).name

    @deferred_signals()
    def work():
        raise_if_signaled(ONE)
        os.kill(os.getpid(), number)
        assert signaled() == number
        with pytest.raises(Interrupted, match=name):
            raise_if_signaled(ONE)

    with pytest.raises(Interrupted, match=name):
        work()
    assert signaled() is None
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_what_nobody_has_asked_for_is_raised_at_the_end(own_signals):
    """Of the outermost block, whose work is at its end; in between it is there to be asked for."""
    catch_signals()
    noted = []

    @deferred_signals()
    def work():
        with deferred_signals():
            os.kill(os.getpid(), signal.SIGTERM)
        noted.append(signaled())

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()
    assert noted == [signal.SIGTERM]


def test_a_signal_to_one_process_is_one_to_all():
    class Two:
        num_processes, device = 2, torch.device("cpu")

        def reduce(self, tensor, how):
            assert how == "sum"
            return tensor + self.other

    two = Two()
    with deferred_signals():
        two.other = 0
        raise_if_signaled(two)
        two.other = 1
        with pytest.raises(Interrupted, match="SIGTERM"):
            raise_if_signaled(two)


def test_at_once(own_signals):
    catch_signals()
    with pytest.raises(Interrupted, match="interrupted by SIGTERM") as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.number == signal.SIGTERM
    # The same one, passed on by a launcher.
    os.kill(os.getpid(), signal.SIGTERM)


def test_released(own_signals):
    """While a process waits to be stopped after an error, a signal is no second one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    catch_signals()
    interruption.release_signals()
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == [signal.SIG_IGN, signal.SIG_DFL]


def test_what_is_ignored_stays_so(own_signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.SIGINT not in catch_signals()
    os.kill(os.getpid(), signal.SIGINT)


# The module alone, because the package takes seconds to be imported, as does torch, which is of no use here.
ALONE_IN_A_PROCESS = f"""
import importlib.util, os, signal, sys, time, types
sys.modules["torch"] = types.ModuleType("torch")
spec = importlib.util.spec_from_file_location("interruption", {interruption.__file__!r})
interruption = sys.modules["interruption"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interruption)
"""

# Waits for signals in the way of a training; what is a second one has to come later than at once.
WAITING = """
signal.signal(signal.SIGINT, signal.default_int_handler)
interruption._SAME = 0
with interruption.deferred_signals():
    print("begun", flush=True)
    while not interruption.signaled():
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
"""


def test_a_second_one_ends_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE_IN_A_PROCESS + WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted\n"
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, text = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - started < 10
    assert text == "\ninterrupted: stopping as soon as all can be kept; once more, after 0 s, ends at once\n"


@pytest.fixture
def ended(monkeypatch, own_signals):
    """The signals by which this process would have been ended; its clock is the first of its values."""
    ended, clock = [], [0.0]
    monkeypatch.setattr(interruption, "end_by", ended.append)
    monkeypatch.setattr(interruption.time, "monotonic", lambda: clock[0])
    catch_signals()
    return ended, clock


def test_after_the_gentle_one_the_first_of_the_others_ends_nothing_at_once(ended):
    """A batch system sends SIGUSR1 a while before its SIGTERM, and a checkpoint may take longer."""
    ended, clock = ended

    @deferred_signals()
    def work():
        for clock[0], number in (
            (0, signal.SIGUSR1),
            (60, signal.SIGTERM),
            (64, signal.SIGTERM),
            (90, signal.SIGUSR1),
        ):
            os.kill(os.getpid(), number)
        assert ended == []
        assert signaled() == signal.SIGTERM
        clock[0] = 65.5
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()
    assert ended == [signal.SIGINT]


def test_what_was_raised_is_not_raised_again(ended):
    """Not even by the first that is not the gentle one: what is kept is being said."""
    ended, clock = ended
    with pytest.raises(Interrupted, match="SIGUSR1"):
        os.kill(os.getpid(), signal.SIGUSR1)
    clock[0] = 60
    os.kill(os.getpid(), signal.SIGTERM)
    assert ended == []


# A parent that ends by itself, and the child that it leaves alone.
ORPHANED = """
interruption.catch_signals()
if os.fork():
    os.read(0, 1)
    os._exit(0)
interruption.end_with_parent()
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt as error:
    print(error, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_end_of_a_launcher_is_noticed():
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE_IN_A_PROCESS + ORPHANED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.kill()
    assert process.communicate(timeout=30)[0] == "interrupted as its launcher has ended\n"


def test_a_worker_outlives_a_signal_to_all(own_signals):
    loader = torch.utils.data.DataLoader(Slow(), num_workers=1, worker_init_fn=interruption.outlive_signals)
    batches = iter(loader)
    (pid,) = next(batches).tolist()
    for number in SIGNALS:
        os.kill(pid, number)
    assert [batch.tolist() for batch in batches] == [[pid]] * 7


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, row):
        return os.getpid()
