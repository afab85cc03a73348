"""Run the README's Python code where only the package itself is installed.

    python .ci/run_readme.py README.md

A block that needs a package of an extra is left out, and named. tests/test_readme.py
runs all blocks.
"""

import importlib.util
import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(path):
    """Run the blocks in turn, in one namespace."""
    namespace = {"__name__": "__main__"}
    for code in FENCE.findall(Path(path).read_text(encoding="utf-8")):
        if "CLIPEmbedder" in code and importlib.util.find_spec("transformers") is None:
            print("left out, because the extra `clip` is not installed:")
            print("    " + code.strip().splitlines()[-1])
            continue
        exec(compile(code, str(path), "exec"), namespace)
    import sklearn_fpe

    print("ran with", sklearn_fpe.__file__)


if __name__ == "__main__":
    main(*sys.argv[1:])
