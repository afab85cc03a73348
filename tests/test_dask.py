"""A grid search on a Dask cluster, through joblib's backend."""

import os

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV

from sklearn_fpe import FPEClassifier

distributed = pytest.importorskip(
    "distributed", reason="the extra 'dask' is not installed: distributed is missing"
)

pytestmark = [
    # What distributed leaves open when it ends is closed with the processes.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class WorkerScore:
    """Accuracy; notes on the way which process asked for it."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, estimator, X, y):
        with open(os.path.join(self.folder, str(os.getpid())), "w"):
            return estimator.score(X, y)


@pytest.fixture
def client(monkeypatch):
    # Workers inherit it; the net is tiny.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Workers import this module to unpickle what it defines.
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        yield client


def test_grid_search_on_two_workers_finds_what_one_process_finds(client, tmp_path):
    X, y = load_iris(return_X_y=True)
    search = GridSearchCV(
        FPEClassifier((4,), max_iter=3, random_state=0),
        {"expansion": [1, 2], "split": ["shared", "random"]},
        scoring=WorkerScore(str(tmp_path)),
        cv=3,
        refit=False,
    )
    with parallel_config("dask", scatter=[X, y]):
        search.fit(X, y)
    workers = {str(pid) for pid in client.run(os.getpid).values()}
    assert len(workers) == 2
    # A quick worker may do it all; this process does nothing.
    scored = {file.name for file in tmp_path.iterdir()}
    assert scored
    assert scored <= workers

    results = search.cv_results_
    alone = search.fit(X, y).cv_results_
    for fold in range(3):
        key = f"split{fold}_test_score"
        np.testing.assert_array_equal(results[key], alone[key])
