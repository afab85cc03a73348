"""
A grid search on a Dask cluster
===============================

scikit-learn runs its searches through joblib, and joblib can run them on a Dask
cluster. The estimator stays as it is: one context manager sends every fit of the search
to a worker. Here the cluster is two processes on this machine.
"""

# %%
# The search itself is as everywhere; ``parallel_config("dask")`` sends its fits to the
# workers, and ``scatter=[X, y]`` sends the arrays to them once.

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
# Workers are new processes that import this script, so the code that starts them has to
# be guarded by ``if __name__ == "__main__"``.

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
# Every bar is a task: one fit, or a few that joblib put together. The first task of a
# worker, in light colour, also imports the packages.

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
    first = {worker: min(s for w, s, _ in spans if w == worker) for worker, *_ in spans}
    for worker, start, stop in spans:
        ax.barh(
            worker,
            stop - start,
            left=start - begin,
            color=f"C{worker}",
            edgecolor="white",
            alpha=0.4 if start == first[worker] else 1,
        )
    ax.set_yticks(range(len(workers)), [f"worker {i}" for i in range(len(workers))])
    ax.set(xlabel="seconds", title="6 settings × 3 folds, light: first task")
    plt.show()

# %%
# What to know before you use a real cluster
# ------------------------------------------
#
# **Packages.** Workers need the same versions of Python and of the packages that
# the estimator is made of: sklearn_fpe, scikit-learn, skorch and torch. Estimators
# travel as pickles, of a few kilobytes before they are fitted. A callable ``split=`` or
# your own transformer has to be importable on the workers, or be defined in the script
# itself.
#
# **Data.** ``scatter=[X, y]`` sends the arrays to the workers once. Without it they
# would be sent with every task. Put large data on storage that all workers see, as a
# memory map; scikit-learn still copies the rows of each fold into the worker's memory.
#
# **Devices.** ``device="auto"`` takes the first GPU that the worker sees, or its
# CPU. Give each worker one GPU by starting it with its own ``CUDA_VISIBLE_DEVICES``;
# ``dask_cuda.LocalCUDACluster`` does that on one machine. One thread per worker keeps
# two fits from sharing a device.
#
# **Results.** For the same ``random_state`` the search finds the same as on one
# machine, to the bit if the processors are the same. The best estimator is fitted where
# the search was started, after the workers are done.
