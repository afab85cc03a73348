"""Fits beside one another: in joblib's workers, in threads, on few CPU threads."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.model_selection import GridSearchCV

from sklearn_fpe import FPEClassifier
from sklearn_fpe._engine import _streamed_rows, _views

QUICK = {
    "hidden_layer_sizes": (6,),
    "expansion": 2,
    "max_iter": 3,
    "warmup": 1,
    "random_state": 0,
}


# --------------------------------------------------------------------------------------
# Memory maps of joblib
# --------------------------------------------------------------------------------------


def large():
    """Return an array above the megabyte from which on joblib makes memory maps."""
    X, y = make_classification(2600, 60, n_informative=8, n_classes=3, random_state=0)
    assert X.nbytes > 2**20
    return X, y


class Streaming(FPEClassifier):
    """Streams maps of any size, in a worker as well."""

    def fit(self, X, y):
        before = _views.STREAM_ABOVE, _streamed_rows.SHUFFLE_BLOCK
        _views.STREAM_ABOVE, _streamed_rows.SHUFFLE_BLOCK = 0, 16
        try:
            super().fit(X, y)
            self.was_map_ = isinstance(X, np.memmap) or isinstance(X.base, np.memmap)
            self.was_streamed_ = _views.View(X).streamed
            return self
        finally:
            _views.STREAM_ABOVE, _streamed_rows.SHUFFLE_BLOCK = before


def voting(n_jobs):
    members = [("a", Streaming(**QUICK)), ("b", Streaming(**QUICK, split="random"))]
    return VotingClassifier(members, voting="soft", n_jobs=n_jobs)


def stacking(n_jobs):
    members = [("a", Streaming(**QUICK)), ("b", Streaming(**QUICK, split="random"))]
    return StackingClassifier(members, Streaming(**QUICK), cv=2, n_jobs=n_jobs)


@pytest.mark.parametrize("make", [voting, stacking])
def test_number_of_jobs_changes_no_bit(make):
    X, y = large()
    alone, beside = make(1).fit(X, y), make(2).fit(X, y)
    np.testing.assert_array_equal(beside.predict_proba(X), alone.predict_proba(X))
    members = [m for m in beside.estimators_ if isinstance(m, Streaming)]
    assert all(member.was_map_ for member in members)
    assert not any(member.was_streamed_ for member in members)


def test_number_of_jobs_of_a_search_changes_no_bit():
    X, y = large()
    grid = {"expansion": [1, 2]}
    alone, beside = (
        GridSearchCV(Streaming(**QUICK), grid, cv=2, n_jobs=n).fit(X, y) for n in (1, 2)
    )
    for name in ("split0_test_score", "split1_test_score"):
        np.testing.assert_array_equal(alone.cv_results_[name], beside.cv_results_[name])


def test_users_memory_map_is_streamed(tmp_path):
    X, y = large()
    path = tmp_path / "X.npy"
    np.save(path, X)
    mapped = np.load(path, mmap_mode="r")
    for rows in (mapped, mapped[:2000], np.asarray(mapped)[100:]):
        model = Streaming(**QUICK).fit(rows, y[: len(rows)])
        assert model.was_streamed_
    assert not Streaming(**QUICK).fit(X, y).was_streamed_


# --------------------------------------------------------------------------------------
# CPU threads
# --------------------------------------------------------------------------------------


def run(code):
    """Run code in a process of its own, in which torch has 4 threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "LOKY_MAX_CPU_COUNT": "2"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


PRELUDE = """
import threading
import numpy as np
import torch
torch.set_num_threads(4)  # there may be fewer cores
from sklearn.datasets import make_classification
from sklearn_fpe import FPEClassifier
from sklearn_fpe._engine import _context
from sklearn_fpe._engine._net import Net

X, y = make_classification(200, 8, n_informative=6, n_classes=3, random_state=0)
seen = []
real = Net.train_step

def train_step(self, batch, **kwargs):
    seen.append(torch.get_num_threads())
    return real(self, batch, **kwargs)

Net.train_step = train_step

def make(**settings):
    common = dict(expansion=2, max_iter=2, warmup=1, random_state=0)
    return FPEClassifier((6,), **common | settings)

def in_another_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]
"""


def test_little_work_is_done_by_one_thread_and_leaves_no_trace():
    run(
        """
        assert torch.get_num_threads() == in_another_thread() == 4
        model = make().fit(X, y)
        assert set(seen) == {1}, seen
        assert torch.get_num_threads() == in_another_thread() == 4
        model.predict(X)
        model.partial_fit(X, y)
        assert set(seen) == {1}, seen
        assert torch.get_num_threads() == in_another_thread() == 4
        """
    )


def test_more_work_is_done_by_more_threads():
    run(
        """
        _context.FLOPS_PER_THREAD = 1e3
        make(batch_size=200).fit(X, y)
        assert set(seen) == {4}, seen
        seen.clear()
        _context.FLOPS_PER_THREAD = 6 * (6 * 9 + 12 + 3 * 13) * 200 / 2
        make(batch_size=200).fit(X, y)
        assert set(seen) == {2}, seen
        """
    )


def test_errors_leave_no_trace():
    run(
        """
        for error in (KeyboardInterrupt, MemoryError, ValueError):
            def train_step(self, batch, **kwargs):
                assert torch.get_num_threads() == 1
                raise error
            Net.train_step = train_step
            for method in ("fit", "partial_fit"):
                try:
                    getattr(make(), method)(X, y)
                except error:
                    pass
                assert torch.get_num_threads() == in_another_thread() == 4
        Net.train_step = real
        model = make().fit(X, y)
        bad = X.copy()
        bad[-1] = np.nan
        try:
            model.predict(bad)
        except ValueError:
            pass
        assert torch.get_num_threads() == in_another_thread() == 4
        """
    )


@pytest.mark.parametrize("how", ["torch", "threadpoolctl"])
def test_never_more_threads_than_allowed(how):
    run(
        f"""
        import contextlib, threadpoolctl
        _context.FLOPS_PER_THREAD = 1.0
        assert torch.get_num_threads() == 4  # torch sets its number when first asked
        limit = contextlib.nullcontext()
        if {how!r} == "torch":
            torch.set_num_threads(2)
        if {how!r} == "threadpoolctl":
            limit = threadpoolctl.threadpool_limits(2)
        with limit:
            make().fit(X, y).predict(X)
            assert torch.get_num_threads() == 2
        assert set(seen) == {{2}}, seen
        """
    )


def test_workers_of_joblib_share_the_threads():
    run(
        """
        import os
        from joblib import Parallel, delayed

        def work():
            import torch
            from sklearn_fpe._engine import _context
            _context.FLOPS_PER_THREAD = 1.0
            with _context.threads_for(1e9, torch.device("cpu")):
                return torch.get_num_threads()

        found = Parallel(n_jobs=2)(delayed(work)() for _ in range(4))
        assert max(found) <= max(1, os.cpu_count() // 2), found
        """
    )


def test_several_fits_in_threads_keep_to_their_own():
    run(
        """
        expected = make(max_iter=6).fit(X, y).predict_proba(X)
        faults = []

        def work(number):
            before = torch.get_num_threads()
            # Some of them compute with one thread, some with more.
            model = make(max_iter=6, batch_size=32 if number % 2 else "auto")
            for _ in range(3):
                model.fit(X, y)
                if torch.get_num_threads() != before:
                    faults.append(torch.get_num_threads())
            if not number % 2 and (model.predict_proba(X) != expected).any():
                faults.append(number)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults, faults
        assert max(seen) == 1, set(seen)
        assert torch.get_num_threads() == in_another_thread() == 4
        """
    )


# --------------------------------------------------------------------------------------
# The first fit of a process
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("FPEClassifier", ""),
        ("FPERegressor", "early_stopping=True, prune='structured'"),
    ],
)
def test_first_fit_imports_few_modules(kind, settings):
    code = f"""
    import sys
    from sklearn_fpe import {kind}
    from sklearn.datasets import make_classification
    X, y = make_classification(200, 8, n_informative=6, n_classes=3, random_state=0)
    before = set(sys.modules)
    model = {kind}((6,), expansion=2, max_iter=2, random_state=0, {settings})
    model.fit(X, y)
    model.predict(X)
    print(*sorted(set(sys.modules) - before))
    """
    imported = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(imported) <= 20, imported
