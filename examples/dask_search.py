"""
A grid search on a Dask cluster
===============================

scikit-learn runs its searches through joblib, and joblib can hand them to a Dask
cluster. Nothing in the estimator changes: one context manager sends every fit of the
search to a worker. Here the cluster is two processes of this machine.
"""

# %%
# **What to ship.** Workers need the same versions of Python and of the packages that
# the estimator is made of: sklearn_fpe, scikit-learn, skorch and torch. Estimators
# travel as pickles, of a few kilobytes before they are fitted. A callable ``split=`` or
# your own transformer has to be importable on the workers, or be defined in the script
# itself.
#
# **How data get there.** ``scatter=[X, y]`` sends the arrays to the workers once; each
# of the fits then names them. Without it they would travel with every task. Large data
# go on storage that all workers see, as a memory map; scikit-learn still copies the
# rows of each fold into the worker's memory.
#
# **Which device.** ``device="auto"`` takes the first GPU that the worker sees, or its
# CPU. Give each worker one GPU by starting it with its own ``CUDA_VISIBLE_DEVICES``;
# ``dask_cuda.LocalCUDACluster`` does that on one machine. One thread per worker keeps
# two fits from sharing a device.
#
# **What comes back** is what a search on one machine finds, for the same
# ``random_state``, to the bit where processors and numbers of threads are the same. The
# best estimator is fitted where the search was started, after the workers are done.

import logging

import matplotlib.pyplot as plt
from dask.distributed import Client, LocalCluster, get_task_stream
from joblib import parallel_config
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from sklearn_fpe import FPEClassifier


def search_on(cluster, X, y):
    """Search on a cluster; return the search and what each worker did when."""
    grid = {"expansion": [1, 2, 4], "split": ["shared", "random"]}
    search = GridSearchCV(FPEClassifier((4,), max_iter=20, random_state=0), grid, cv=3)
    with (
        Client(cluster) as client,
        get_task_stream(client) as stream,
        parallel_config("dask", scatter=[X, y]),
    ):
        search.fit(X, y)
    return search, stream.data


# %%
# Workers are new processes, which import this script: what starts them has to stand
# behind ``if __name__ == "__main__"``.

if __name__ == "__main__":
    X, y = load_digits(return_X_y=True)
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs=logging.ERROR,
    ) as cluster:
        search, tasks = search_on(cluster, X, y)
    print(search.best_params_, f"accuracy {search.best_score_:.3f}")

# %%
# Every bar is a task, one fit or a few that joblib bundled. The first of a worker is
# long: it imports the packages.

if __name__ == "__main__":
    workers = sorted({task["worker"] for task in tasks})
    spans = [
        (workers.index(task["worker"]), step["start"], step["stop"])
        for task in tasks
        for step in task["startstops"]
        if step["action"] == "compute"
    ]
    begin = min(start for _, start, _ in spans)
    fig, ax = plt.subplots(figsize=(8, 2.2), layout="constrained")
    for worker, start, stop in spans:
        ax.barh(
            worker,
            stop - start,
            left=start - begin,
            color=f"C{worker}",
            edgecolor="white",
        )
    ax.set_yticks(range(len(workers)), [f"worker {i}" for i in range(len(workers))])
    ax.set(xlabel="seconds", title=f"{len(search.cv_results_['params'])} × 3 fits")
    plt.show()
