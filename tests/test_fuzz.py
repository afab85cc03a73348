"""Malformed calls give documented errors, or models whose answers are finite.

A slice of what ``benchmarks/fuzz.py`` runs; it also tells how to replay a case.
"""

import os
from collections import Counter

import pytest

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
