"""Malformed calls give documented errors, or models whose answers are finite.

A slice of what ``benchmarks/fuzz.py`` runs; it also tells how to replay a case.
"""

import os
import sys
import time
from collections import Counter

import numpy as np
import pytest

from benchmarks import _fuzz_watch, fuzz
from benchmarks.fuzz import run_case

N_CALLS = int(os.environ.get("FPE_FUZZ_CALLS", "200"))


@pytest.mark.parametrize("seed", range(3))
def test_a_malformed_call_is_refused_or_harmless(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes = Counter()
    for number in range(N_CALLS):
        case = f"call-{seed}-{number}"
        outcome, failure = run_case(case, tmp_path)
        assert failure is None, f"{case}\n{failure}"
        outcomes["refused" if outcome.endswith("refused") else "let in"] += 1
    # Both happen, or the calls test nothing.
    assert min(outcomes["refused"], outcomes["let in"]) > 0.1 * N_CALLS


# --------------------------------------------------------------------------------------
# What watches the cases finds what is wrong
# --------------------------------------------------------------------------------------


def test_a_case_that_hangs_is_stopped():
    with pytest.raises(_fuzz_watch.Hang), _fuzz_watch.time_limit(0.1):
        time.sleep(60)


TAKEN = 2**26


def take_and_give_back(measure):
    """Return the bytes that a measurement sees of memory that is given back at once."""
    with measure() as peak:
        del [b"x" * TAKEN][:]
    return peak.n_bytes


def free_much():
    """Have the C library keep 256 MB that are free, below an array that is not."""
    del [np.ones(31 * 2**17)][:]  # from now on it takes smaller arrays from its heap
    arrays = [np.ones(2**20) for _ in range(33)]
    return arrays.pop()


def test_memory_that_is_asked_for_and_given_back_is_seen():
    above = free_much()
    assert 0 <= take_and_give_back(_fuzz_watch.memory_asked) - TAKEN < 2**20
    assert above.all()


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_memory_that_is_used_and_given_back_is_seen():
    above = free_much()
    for _ in range(3):
        # The system counts pages per core, so that a few of them may be missing.
        assert abs(take_and_give_back(_fuzz_watch.memory_used) - TAKEN) < 2**21
    assert above.all()


def test_code_that_runs_is_seen():
    with pytest.raises(AssertionError, match="code ran"), fuzz.audit().no_code():
        exec("1")


def test_an_error_that_is_not_documented_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz._fuzz_calls, "run_call", lambda rng, folder: 1 / 0)
    outcome, failure = run_case("call-0-0", tmp_path)
    assert outcome == "FAILED: ZeroDivisionError in fuzz.py:run_case"
    assert "division by zero" in failure


def die_or_hang(cases, connection, limit):
    """Stand for a process: one case passes, then it dies at some, and waits at others.

    It is at module level, so that another process can import it.
    """
    connection.send((cases[0], "passed", None))
    if cases[1] == "dies":
        os._exit(3)
    time.sleep(600)


def test_cases_go_on_after_one_that_kills_the_process(monkeypatch):
    monkeypatch.setattr(fuzz, "work", die_or_hang)
    reports = []
    cases = ["a", "dies", "b", "hangs"]
    fuzz.supervise(cases, 0.1, lambda *answer: reports.append(answer))
    assert [case for case, _, _ in reports] == cases
    assert [outcome for _, outcome, _ in reports] == [
        *("passed", "FAILED: the process died"),
        *("passed", "FAILED: the process did not end"),
    ]
    assert reports[1][2] == "the process died with exit code 3"
