"""
A grid search on a Dask cluster
===============================

scikit-learn runs its searches through joblib, and joblib can run them on a Dask
cluster. The estimator needs no change: one context manager sends every fit of the
search to a worker. Here the cluster is two processes on this machine.
"""

# %%
# Write the search as usual. ``parallel_config("dask")`` sends its fits to the workers,
# and ``scatter=[X, y]`` sends the arrays to the workers once.

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
# Guard the code that starts the workers by ``if __name__ == "__main__"``, because
# workers are new processes that import this script.

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
# Every bar is a task: one fit, or a few fits that joblib sent together. The first task
# of each worker, in a lighter colour, also imports the packages.

if __name__ == "__main__":
    workers = sorted({task["worker"] for task in tasks})
    spans = [
        (workers.index(task["worker"]), step["start"], step["stop"])
        for task in tasks
        for step in task["startstops"]
        if step["action"] == "compute"
    ]
    begin = min(start for _, start, _ in spans)
    fig, ax = plt.subplots(figsize=(6.5, 2.2), layout="constrained")
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
# **Packages.** All workers need the same versions of Python, sklearn_fpe, scikit-learn,
# skorch and torch. Estimators travel as pickles, which take a few kilobytes before the
# fit. A callable ``split=`` or a transformer of your own must be importable on the
# workers, or be defined in the script itself.
#
# **Data.** ``scatter=[X, y]`` sends the arrays to the workers once. Without
# ``scatter``, joblib would send them with every task. Put large data on storage that
# all workers see, as a memory map; scikit-learn still copies the rows of each fold into
# the worker's memory.
#
# **Devices.** ``device="auto"`` takes the first GPU that the worker sees, or its
# CPU. Give each worker one GPU by starting it with its own ``CUDA_VISIBLE_DEVICES``;
# ``dask_cuda.LocalCUDACluster`` does that on one machine. One thread per worker keeps
# two fits from sharing a device.
#
# **Results.** With the same ``random_state`` the search gives the same results as on
# one machine, bit for bit if the processors are the same. The best estimator is fitted
# on the machine that started the search, after the workers have finished.
