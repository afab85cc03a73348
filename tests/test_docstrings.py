"""Docstrings of the public names, checked against their signatures."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

validate = pytest.importorskip(
    "numpydoc.validate", reason="numpydoc, of the group 'docs', is not installed"
)

ROOT = Path(__file__).parents[1]
MODULES = [
    "sklearn_fpe",
    "sklearn_fpe.nn",
    "sklearn_fpe.inspection",
    "sklearn_fpe.datasets",
    "sklearn_fpe.embeddings",
]
IGNORED = {
    "GL01": "the summary stands on the line of the quotes",
    "GL03": "blank lines are the formatter's business",
    "GL08": "what has to have a docstring is checked here",
    "ES01": "an extended summary is written where there is more to say",
    "PR04": "parameters handed on are described where they are used",
    "PR06": "array-likes are described as scikit-learn describes them",
    "RT02": "the thing returned is named: X_new, self",
    "SA01": "a see-also section is written where there is one",
    "SA04": "names of other packages explain themselves",
    "EX01": "which names need an example is checked here",
    "YD01": "there are no generators",
    "SS05": "it takes a noun in the plural for a verb: Collisions per neuron ...",
    "SS06": "checked by ruff, which knows summaries of two lines",
}


def public_names(module):
    """Full names of what a module offers: ``__all__``, or what it defines itself."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(loaded).items()
            if getattr(value, "__module__", None) == module and name[0] != "_"
        ]
    return [f"{module}.{name}" for name in names if not name.startswith("__")]


PUBLIC = [name for module in MODULES for name in public_names(module)]


def find(name):
    module = next(m for m in sorted(MODULES, reverse=True) if name.startswith(f"{m}."))
    value = importlib.import_module(module)
    for part in name.removeprefix(f"{module}.").split("."):
        value = inspect.getattr_static(value, part)
    return value


def methods(name):
    """Full names of the public methods of a class that this package wrote."""
    cls = find(name)
    if not inspect.isclass(cls) or issubclass(cls, BaseException):
        return []
    found = []
    for attribute in dir(cls):
        value = inspect.getattr_static(cls, attribute)
        value = getattr(value, "__func__", value)
        is_ours = str(getattr(value, "__module__", "")).startswith("sklearn_fpe")
        # What PyTorch calls is documented by PyTorch.
        is_hook = attribute in {"forward", "extra_repr"}
        if attribute[0] != "_" and inspect.isfunction(value) and is_ours:
            found += [] if is_hook else [f"{name}.{attribute}"]
    return found


DOCUMENTED = PUBLIC + [method for name in PUBLIC for method in methods(name)]


def test_public_names_are_found():
    assert "sklearn_fpe.FPEClassifier" in PUBLIC
    assert "sklearn_fpe.datasets.make_dnf" in PUBLIC
    assert "sklearn_fpe.FPEClassifier.partial_fit" in DOCUMENTED
    assert "sklearn_fpe.inspection.ChildInputsDisplay.from_estimator" in DOCUMENTED


def is_prose(name):
    """Tell whether a docstring is one paragraph, as methods of networks may have."""
    value = find(name)
    doc = inspect.getdoc(getattr(value, "__func__", value)) or ""
    is_method = name.startswith("sklearn_fpe.nn.") and name not in PUBLIC
    return is_method and "---" not in doc


def is_exception(name):
    return inspect.isclass(find(name)) and issubclass(find(name), Exception)


SECTIONED = [n for n in DOCUMENTED if not is_prose(n) and not is_exception(n)]
PROSE = [name for name in DOCUMENTED if is_prose(name)]


@pytest.mark.parametrize("name", SECTIONED)
def test_docstring_is_numpydoc(name):
    ignored = set(IGNORED)
    if hasattr(find(name), "__dataclass_fields__"):
        ignored.add("PR01")  # fields may be documented as attributes, see below
    errors = validate.validate(name)["errors"]
    found = [f"{code}: {text}" for code, text in errors if code not in ignored]
    assert not found, "\n".join([name, *found])


def signature_parameters(value):
    parameters = inspect.signature(value).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [stars.get(p.kind, "") + p.name for p in parameters]
    return [name for name in names if name not in {"self", "cls"}]


@pytest.mark.parametrize("name", SECTIONED)
def test_parameters_are_those_of_the_signature_in_its_order(name):
    value = find(name)
    value = getattr(value, "__func__", value)
    doc = validate.get_doc_object(value)
    documented = doc["Parameters"]
    if hasattr(value, "__dataclass_fields__") and not documented:
        documented = doc["Attributes"]  # of a class that its users do not make
    names = [name for entry in documented for name in entry.name.split(", ")]
    assert names == signature_parameters(value)
    # In a raw docstring a backslash at the end of a line does not join two lines.
    assert not [entry.name for entry in documented if entry.type.endswith("\\")]


@pytest.mark.parametrize("name", PROSE)
def test_prose_names_every_parameter(name):
    value = find(name)
    value = getattr(value, "__func__", value)
    for parameter in signature_parameters(value):
        assert re.search(rf"\b{parameter}\b", inspect.getdoc(value)), parameter


# What is shown together has one example.
SHOWN_BY = {"sklearn_fpe.load": "sklearn_fpe.save"}


@pytest.mark.parametrize("name", [n for n in PUBLIC if not is_exception(n)])
def test_public_name_has_an_example(name):
    doc = inspect.getdoc(find(SHOWN_BY.get(name, name)))
    example = "\n".join(re.findall(r"^ *(?:>>>|\.\.\.).*$", doc, re.MULTILINE))
    assert name.rpartition(".")[2] in example


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_in_the_reference(name):
    module, _, short = name.rpartition(".")
    page = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    _, _, after = page.partition(f".. currentmodule:: {module}\n")
    listed, _, _ = after.partition(".. currentmodule::")
    assert re.search(rf"^   {short}$", listed, re.MULTILINE)


PAGES = sorted((ROOT / "docs").glob("*.rst")) + sorted(
    (ROOT / "docs" / "user_guide").glob("*.rst")
)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if ">>>" in page.read_text("utf-8")], ids=str
)
def test_code_of_the_guide_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert result.attempted
    assert not result.failed
