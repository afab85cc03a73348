"""Run the experiments and make the results page.

    python -m benchmarks.experiments --data glyphs.npz --text sentences.npz

``--quick`` runs a small version of each, to see that everything works; it writes into
``build/experiments`` unless told otherwise, never over the published results.
"""

import argparse
import json
import time
from importlib import import_module
from pathlib import Path

import torch

import sklearn_fpe
from benchmarks.experiments import NAMES
from benchmarks.experiments._page import load_results, write_page

ROOT = Path(__file__).parents[2]


def main(arguments=None):
    args = _parse(arguments)
    quick_folder = ROOT / "build" / "experiments"
    results = args.results or (
        quick_folder if args.quick else ROOT / "benchmarks" / "results" / "experiments"
    )
    docs = args.docs or (quick_folder / "docs" if args.quick else ROOT / "docs")
    results.mkdir(parents=True, exist_ok=True)
    data = {"glyphs": args.data, "text": args.text}
    data = {task: path for task, path in data.items() if path}
    for name in [] if args.page_only else args.only:
        start = time.perf_counter()
        result = run_one(name, args.quick, data, args.jobs)
        result["seconds"] = round(time.perf_counter() - start, 1)
        (results / f"{name}.json").write_text(dumps(result), encoding="utf-8")
        print(f"{name}: {result['seconds']:.0f} s", flush=True)
    docs.mkdir(parents=True, exist_ok=True)
    page = docs / "results.rst"
    write_page(load_results(results), page, docs / "_static" / "results")
    print(f"wrote {page}")


def run_one(name, quick, data, n_jobs):
    """Run an experiment; return what it measured and how."""
    result = import_module(f"benchmarks.experiments.{name}").run(quick, data, n_jobs)
    return {
        "name": name,
        "quick": quick,
        "data": _name(data, "glyphs"),
        "text": _name(data, "text"),
        "n_jobs": n_jobs,
        "version": sklearn_fpe.__version__,
        "torch": torch.__version__.split("+")[0],
        **result,
    }


def _name(data, task):
    return Path(data[task]).name if task in data else None


def dumps(result):
    """Write a result as JSON with one row a line."""
    parts = []
    for key, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(json.dumps(_rounded(row)) for row in value)
            text = f"[\n{rows}\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rounded(row):
    """Round to six digits: enough for every figure, and no noise in the file."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description="Run the experiments and make docs/results.rst of what they wrote.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a small version of each experiment")
    add("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    add("--data", help="image embeddings (.npz: X_train, y_train, X_test, y_test)")
    add("--text", help="sentence embeddings, in the same form (for peers)")
    add("--jobs", type=int, default=2, help="processes (default: 2)")
    add(
        "--page-only",
        action="store_true",
        help="only make the page, of existing results",
    )
    add("--results", type=Path, help="folder of the JSON files")
    add("--docs", type=Path, help="folder of the page")
    args = parser.parse_args(arguments)
    for name in ("data", "text"):
        path = getattr(args, name)
        if path and not Path(path).is_file():
            parser.error(f"--{name} must be a file, got {path!r}.")
    return args


if __name__ == "__main__":
    main()
