"""The laws of the house: what may import what, and what is pinned where."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import sklearn_fpe

ROOT = Path(__file__).parents[1]
PACKAGE = Path(sklearn_fpe.__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OPTIONAL = [
    *("matplotlib", "pandas", "polars", "rich", "transformers", "PIL"),
    *("onnx", "onnxruntime", "safetensors", "dask", "distributed", "pyarrow"),
]
# What they do at import is theirs: where rich and pandas are installed they import
# them, and rich draws from the generator of the module `random`.
DEPENDENCIES = (
    "import joblib, numpy, scipy.sparse, skorch, sklearn, sklearn.callback, torch"
)


def imported_modules(source, package):
    """Absolute names of all modules that a module of `package` imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*parent, *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def run_python(code):
    """JSON value that `code` prints in a fresh interpreter."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sklearn.base as b", "sklearn.base"),
        ("from skorch import NeuralNet", "skorch.NeuralNet"),
        ("def f():\n    from . import _a", "pack.nn._a"),
        ("from ._a import b", "pack.nn._a.b"),
        ("from .._base import c", "pack._base.c"),
        ("from .. import _base", "pack._base"),
    ],
)
def test_imported_modules_resolves_every_form(source, expected):
    assert imported_modules(source, "pack.nn") == {expected}


# Who may import what of the package, and which packages they may not import. What is
# not listed here may import everything.
LAYERS = {
    "nn": ({"nn"}, {"sklearn", "skorch"}),
    "_engine": ({"nn", "_engine"}, {"sklearn"}),
    "_estimators": ({"nn", "_engine", "_estimators", "_version"}, set()),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer):
    inside, forbidden = LAYERS[layer]
    modules = sorted((PACKAGE / layer).rglob("*.py"))
    assert modules
    for path in modules:
        package = ".".join(["sklearn_fpe", *path.parent.relative_to(PACKAGE).parts])
        for name in imported_modules(path.read_text(encoding="utf-8"), package):
            top, *below = name.split(".")
            assert top not in forbidden, f"{path.name} imports {name}"
            if top == "sklearn_fpe":
                assert below, f"{path.name} imports {name}"
                assert below[0] in inside, f"{path.name} imports {name}"


class Privates(ast.NodeVisitor):
    """The private attributes that a module defines, and those that it reads.

    ``reads`` holds those of other objects than ``self``, ``cls`` and ``super()``, and
    all strings, because ``getattr`` and ``vars`` read by strings.
    """

    def __init__(self, source, package):
        tree = ast.parse(source)
        self.defined, self.reads = set(), []
        self.imports = imported_modules(source, package)
        self.bases = set()
        self.visit(tree)

    @staticmethod
    def is_private(name):
        return name.startswith("_") and not name.startswith("__") and name != "_"

    def visit_ClassDef(self, node):
        self.bases |= {ast.unparse(base).split(".")[-1] for base in node.bases}
        for child in node.body:
            if isinstance(child, ast.FunctionDef):
                self.defined.add(child.name)
            for target in getattr(child, "targets", [getattr(child, "target", None)]):
                if isinstance(target, ast.Name):
                    self.defined.add(target.id)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        value = node.value
        if isinstance(value, ast.Call):  # super()
            value = value.func
        own = isinstance(value, ast.Name) and value.id in {"self", "cls", "super"}
        if own and isinstance(node.ctx, ast.Store):
            self.defined.add(node.attr)
        elif not own and self.is_private(node.attr):
            self.reads.append((node.attr, node.lineno, ast.unparse(node)))
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, str) and self.is_private(node.value):
            self.reads.append((node.value, node.lineno, repr(node.value)))


def private_reads(sources):
    """List what modules read of the private attributes that other modules define.

    `sources` maps the full names of modules to their source. A module may read what it
    defines itself, and what the bases of its classes define.
    """
    modules = {
        name: Privates(source, name.rpartition(".")[0])
        for name, source in sources.items()
    }
    all_defined = {n for m in modules.values() for n in m.defined if m.is_private(n)}

    def inherited(module):
        found = set(modules[module].defined)
        for base in modules[module].bases:
            for imported in modules[module].imports:
                home, _, name = imported.rpartition(".")
                if name == base and home in modules:
                    found |= inherited(home)
        return found

    return [
        f"{name}:{line}: {text}"
        for name, module in modules.items()
        for attribute, line, text in module.reads
        if attribute in all_defined - inherited(name)
    ]


def test_no_module_reads_a_private_attribute_of_another():
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        sources[".".join(parts)] = path.read_text(encoding="utf-8")
    assert len(sources) > 30
    found = private_reads(sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "n_found"),
    [
        ("x._kept", 1),
        ("x.y._kept.z", 1),
        ("f(x)._kept = 1", 1),
        ("getattr(x, '_kept')", 1),
        ("vars(x)['_kept']", 1),
        ("x._method()", 1),
        ("x._constant", 1),
        ("x._torch", 0),  # of another package
        ("x.kept", 0),
        ("x.__dict__", 0),
        ("class B:\n    def f(self):\n        self._kept + super()._method()", 0),
        ("class B:\n    def f(self):\n        self._kept = 1\nx._kept", 0),
        ("from pack.a import A\nclass B(A):\n    def f(self, x):\n        x._kept", 0),
        ("from pack.a import A\nclass B(C):\n    def f(self, x):\n        x._kept", 1),
    ],
)
def test_private_reads_are_found(source, n_found):
    defines = (
        "class A:\n    _constant = 1\n    def _method(self):\n        self._kept = 1"
    )
    found = private_reads({"pack.a": defines, "pack.b": source})
    assert len(found) == n_found, found


def test_import_brings_no_optional_package():
    code = f"""
import json, sys
{DEPENDENCIES}
before = set(sys.modules)
import sklearn_fpe
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    assert set(OPTIONAL).isdisjoint(run_python(code))


def test_import_works_where_no_optional_package_is_installed():
    code = f"""
import json, sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))  # None: importing it is an error
import sklearn_fpe
print(json.dumps(sklearn_fpe.__version__))
"""
    assert run_python(code) == sklearn_fpe.__version__


def test_import_leaves_global_state_alone():
    code = f"""
import json, pickle, random
{DEPENDENCIES}

def state():
    return (
        pickle.dumps(random.getstate()),
        pickle.dumps(numpy.random.get_state()),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )

before = state()
import sklearn_fpe
print(json.dumps([a == b for a, b in zip(before, state())]))
"""
    assert run_python(code) == [True] * 6


def test_version_is_that_of_the_project():
    version = PYPROJECT["project"]["version"]
    assert sklearn_fpe.__version__ == version
    assert importlib.metadata.version("sklearn-fpe") == version


def requirements():
    """Everything that pyproject.toml names, but the project itself."""
    project = PYPROJECT["project"]
    named = [
        project["dependencies"],
        PYPROJECT["build-system"]["requires"],
        *project["optional-dependencies"].values(),
        *PYPROJECT["dependency-groups"].values(),
    ]
    parsed = [Requirement(text) for texts in named for text in texts]
    return [requirement for requirement in parsed if requirement.name != "sklearn-fpe"]


def of_users():
    """The requirements that users install: the dependencies, and those of extras."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    parsed = map(Requirement, sum(extras.values(), project["dependencies"]))
    return [requirement for requirement in parsed if requirement.name != "sklearn-fpe"]


def floors(requirement):
    return [spec.version for spec in requirement.specifier if spec.operator == ">="]


def test_dependencies_have_floors_and_no_upper_bounds():
    for requirement in of_users():
        assert len(floors(requirement)) == 1, str(requirement)
        # Single versions that do not work may be excluded.
        assert {spec.operator for spec in requirement.specifier} <= {">=", "!="}


def pins(name):
    """Versions that a file of constraints pins, by canonical name."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {}
    for pin in parsed:
        (spec,) = pin.specifier
        assert spec.operator == "==", str(pin)
        assert canonicalize_name(pin.name) not in found, f"{pin.name} is pinned twice"
        found[canonicalize_name(pin.name)] = Version(spec.version)
    return found


def test_the_lowest_versions_are_those_that_are_tested():
    lowest = pins("constraints-min.txt")
    for requirement in of_users():
        (floor,) = floors(requirement)
        assert lowest[canonicalize_name(requirement.name)] == Version(floor)


def test_every_requirement_is_pinned_once():
    versions = pins("constraints.txt")
    for requirement in requirements():
        in_place = any(spec.operator == "==" for spec in requirement.specifier)
        version = versions.get(canonicalize_name(requirement.name))
        assert in_place != (version is not None), f"{requirement} needs exactly one pin"
        if version is not None:
            assert requirement.specifier.contains(version), f"{version}: {requirement}"


def test_ruff_version_stands_in_pyproject_only():
    config = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert not re.search(r"^\s*rev:", config, re.MULTILINE)
