"""The speed guard: what counts as a change, and that its cells run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare

ROOT = Path(__file__).parents[1]
RATIOS = st.lists(st.floats(0.2, 5), min_size=1, max_size=9)


@given(RATIOS)
def test_a_change_lies_outside_the_spread(ratios):
    median, low, high, word = compare.verdict(ratios)
    assert low <= median <= high
    if word:
        assert not min(ratios) <= 1 <= max(ratios)
        assert abs(median - 1) > high - low
        assert abs(median - 1) >= compare.LEAST
        assert word == ("slower" if median > 1 else "faster")


@given(st.floats(1.05, 5), st.integers(2, 9))
def test_a_steady_change_is_found(ratio, n):
    assert compare.verdict([ratio] * n)[3] == "slower"
    assert compare.verdict([1 / ratio] * n)[3] == "faster"


@given(RATIOS)
def test_swapped_commits_swap_the_sign_of_the_median(ratios):
    rows = compare.summarize({"cell": [(1.0, ratio) for ratio in ratios]})
    swapped = compare.summarize({"cell": [(ratio, 1.0) for ratio in ratios]})
    if len(ratios) % 2:
        assert rows[0]["ratio"] * swapped[0]["ratio"] == pytest.approx(1)


def test_cells_run_with_the_package_of_the_folder():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(compare.SCRIPT), "1"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(result.stdout.splitlines()[-1])
    assert Path(found["package"]).is_relative_to(ROOT)
    assert len(found["times"]) == 21
    assert all(seconds >= 0 for seconds in found["times"].values())
