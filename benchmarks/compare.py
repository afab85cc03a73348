"""Time two commits side by side, and name the cells that changed beyond their spread.

    python -m benchmarks.compare HEAD~20 [HEAD] [--rounds 9] [--json PATH]

Both commits are checked out in temporary git worktrees. A round times every cell once
with each of them, in processes of their own, in alternating order, so that a busy or
hot machine slows both. A cell's figure is the ratio of new to old in a round: the
median over rounds, and the quartiles as its spread. It has changed if all rounds lie on
one side of 1 and the median is further from 1 than the quartiles are from each other,
and than 2 %. Few rounds may lie on one side by chance: of 4, one time in 8; of 9, one
time in 256.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._report import print_table, write_json

SCRIPT = Path(__file__).with_name("_compare_cells.py")
LEAST = 0.02
"""Least change that is reported."""


def verdict(ratios):
    """Return (median, lower quartile, upper quartile, word) of ratios of new to old.

    >>> verdict([1.2, 1.21, 1.19, 1.2])[3]
    'slower'
    >>> verdict([1.2, 0.9, 1.0, 1.1])[3]
    ''
    """
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    else:
        low = high = ratios[0]
    median = statistics.median(ratios)
    change = abs(median - 1)
    one_side = min(ratios) > 1 or max(ratios) < 1
    if not one_side or change < LEAST or change <= high - low:
        return median, low, high, ""
    return median, low, high, "slower" if median > 1 else "faster"


def run(worktree, n_calls):
    """Return the times of a checkout's cells."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(threads, "1")
    environment["PYTHONPATH"] = str(worktree)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(n_calls)],
        cwd=worktree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"The cells cannot be run at {worktree}:\n{result.stderr}")
    found = json.loads(result.stdout.splitlines()[-1])
    if not found["package"].startswith(str(worktree)):
        raise SystemExit(f"Not the commit's own package is run: {found['package']}")
    return found["times"]


def git(*arguments):
    """Return what git prints."""
    command = ["git", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def compare(old, new, n_rounds, n_calls):
    """Yield, after each round, the times so far: {name: [(old, new), ...]}."""
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: Path(folder).resolve() / name for name in ("old", "new")}
        try:
            for side, commit in zip(sides.values(), (old, new), strict=True):
                git("worktree", "add", "--detach", side, commit)
            for i in range(n_rounds):
                order = ("old", "new") if i % 2 == 0 else ("new", "old")
                of_round = {name: run(sides[name], n_calls) for name in order}
                for cell in of_round["old"].keys() & of_round["new"].keys():
                    pair = of_round["old"][cell], of_round["new"][cell]
                    times.setdefault(cell, []).append(pair)
                yield {cell: times[cell] for cell in of_round["new"] if cell in times}
        finally:
            for side in sides.values():
                if side.exists():
                    git("worktree", "remove", "--force", side)


def summarize(times):
    """Return a row for every cell."""
    rows = []
    for cell, pairs in times.items():
        median, low, high, word = verdict([new / old for old, new in pairs])
        rows.append(
            {
                "cell": cell,
                "old_ms": 1e3 * statistics.median(old for old, _ in pairs),
                "new_ms": 1e3 * statistics.median(new for _, new in pairs),
                "ratio": median,
                "from": low,
                "to": high,
                "changed": word,
            }
        )
    return rows


def main(arguments=None):
    """Run from the command line; the exit status is 1 if a cell became slower."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("old", help="a commit, such as HEAD~20 or main")
    parser.add_argument("new", nargs="?", default="HEAD", help="default: HEAD")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=3, help="of a cell in a round")
    parser.add_argument("--json", help="where to write the table as JSON")
    args = parser.parse_args(arguments)
    commits = {name: git("rev-parse", "--short", vars(args)[name]) for name in OLD_NEW}
    times = {}
    for number, times in enumerate(  # noqa: B007
        compare(args.old, args.new, args.rounds, args.calls), start=1
    ):
        print(f"round {number} of {args.rounds}", flush=True)
    rows = summarize(times)
    print_table(rows, list(rows[0]))
    changed = [row for row in rows if row["changed"]]
    print(f"{len(changed)} of {len(rows)} cells changed beyond their spread")
    if args.json:
        write_json(args.json, rows, settings=vars(args) | commits)
    return int(any(row["changed"] == "slower" for row in changed))


OLD_NEW = ("old", "new")


if __name__ == "__main__":
    sys.exit(main())
