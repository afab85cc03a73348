"""Count the files of the package that a fit and a prediction pass through.

    python -m benchmarks.walk [--json PATH]

Three counts for ``FPEClassifier.fit`` on digits: the files on the call stack when the
optimizer makes its first step, those entered until then, and those entered in all,
split and pruning included. Two for ``predict_proba``: the files on the call stack when
the first layer computes, and those entered in all. Small classes that only hold data
have no code that runs, so their files do not count.
"""

import argparse
import json
import sys
from pathlib import Path

from sklearn.datasets import load_digits

import sklearn_fpe
from sklearn_fpe import FPEClassifier
from sklearn_fpe._engine._step import VectorAdamW

PACKAGE = str(Path(sklearn_fpe.__file__).parent)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = count()
    for name, files in found.items():
        print(f"{name}: {len(files)}\n  " + "\n  ".join(files))
    if arguments.json:
        counts = {name: len(files) for name, files in found.items()}
        arguments.json.write_text(json.dumps(counts, indent=1) + "\n")


def count():
    """Return the files of every count, in the order in which they are entered."""
    X, y = load_digits(return_X_y=True)
    model = FPEClassifier((8,), max_iter=4, warmup=2, random_state=0)
    model.fit(X, y)  # what is imported or cached once is not part of the walk
    walk = Walk(VectorAdamW.update.__wrapped__)
    with walk:
        model.fit(X, y)
    found = {
        "fit: on the stack at the first step": walk.on_stack,
        "fit: entered until the first step": walk.before,
        "fit: entered in all": list(walk.entered),
    }
    walk = Walk(type(model.module_.layers[0]).forward)
    with walk:
        model.predict_proba(X)
    return found | {
        "predict_proba: on the stack at the first layer": walk.on_stack,
        "predict_proba: entered in all": list(walk.entered),
    }


class Walk:
    """A profiler that notes the package's files in the order they are entered.

    Parameters
    ----------
    function : function
        Its first call is where the files on the call stack are noted.
    """

    def __init__(self, function):
        self.code = function.__code__
        self.entered, self.on_stack, self.before = {}, [], []

    def __enter__(self):
        sys.setprofile(self._note)

    def __exit__(self, *_):
        sys.setprofile(None)

    def _note(self, frame, event, argument):
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        self.entered.setdefault(_name(frame))
        if not self.on_stack and frame.f_code is self.code:
            self.before = list(self.entered)
            while frame is not None:
                if frame.f_code.co_filename.startswith(PACKAGE):
                    self.on_stack.append(_name(frame))
                frame = frame.f_back
            self.on_stack = list(dict.fromkeys(reversed(self.on_stack)))


def _name(frame):
    return frame.f_code.co_filename[len(PACKAGE) + 1 :]


if __name__ == "__main__":
    main()
