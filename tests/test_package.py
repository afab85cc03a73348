"""What a stranger meets: metadata, links, messages, workflows."""

import importlib.util
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
ADDRESS = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
TARGETS = re.findall(
    r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
)


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture
def absolute(monkeypatch):
    # The build has an environment of its own; what the hook inherits is not tested.
    interface = types.SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    path = ROOT / "hatch_build.py"
    spec = importlib.util.spec_from_file_location("hatch_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.absolute


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](b.md)", "[a](ADDRESS/blob/main/b.md)"),
        ("![a](docs/b.svg)", "![a](ADDRESS/raw/main/docs/b.svg)"),
        ('<img src="docs/b.svg">', '<img src="ADDRESS/raw/main/docs/b.svg">'),
        ("[a](https://b.org/c)", "[a](https://b.org/c)"),
        ("[a](#b)", "[a](#b)"),
    ],
)
def test_links_of_the_long_description_are_absolute(absolute, text, expected):
    assert absolute(text, "ADDRESS") == expected


MARKDOWN = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]


@pytest.mark.parametrize("page", MARKDOWN)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", read(page))
    links += re.findall(r'(?:src|href)="(?!https?://|#)([^"]+)"', read(page))
    assert [
        link for link in links if not (ROOT / link.partition("#")[0]).exists()
    ] == []


def test_the_sdist_has_what_the_readme_names():
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    tops = {path.strip("/").partition("/")[0] for path in included}
    named = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", read("README.md"))
    named += re.findall(r"`((?:docs|benchmarks|examples)/[^`\s]*)`", read("README.md"))
    named += ["Makefile", "constraints.txt", "hatch_build.py"]
    assert {name.partition("/")[0] for name in named} <= tops | {"LICENSE"}
    assert [path for path in included if not (ROOT / path.strip("/")).exists()] == []


def test_addresses_are_that_of_pyproject():
    places = [*MARKDOWN, "CITATION.cff", ".github/ISSUE_TEMPLATE/config.yml"]
    owner = ADDRESS.rpartition("/")[0]
    for place in places:
        for found in re.findall(rf"{owner}[\w./-]*", read(place)):
            assert found.startswith(ADDRESS), place
    assert f"repository-code: {ADDRESS}\n" in read("CITATION.cff")


def test_the_version_of_the_citation_is_the_project_s():
    assert f"\nversion: {PROJECT['version']}\n" in read("CITATION.cff")


SPELLING = re.compile(r"sklearn[-_]fpe\[")


def test_an_extra_is_spelled_in_one_way():
    """An extra is always written ``"sklearn-fpe[name]"``, and exists."""
    files = [*(ROOT / "sklearn_fpe").rglob("*.py"), *(ROOT / "docs").glob("*.rst")]
    files += [*(ROOT / "docs" / "user_guide").glob("*.rst"), ROOT / "README.md"]
    found = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        good = re.findall(r'pip install "sklearn-fpe\[([a-z,]+)\]"', text)
        assert len(good) == len(SPELLING.findall(text)), path.name
        found += [name for names in good for name in names.split(",")]
    assert found
    assert set(found) <= set(PROJECT["optional-dependencies"])


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    called = []
    for job in jobs.values():
        assert job["runs-on"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            called += re.findall(r"^make ([a-z-]+)", step.get("run", ""), re.MULTILINE)
    assert called
    assert set(called) <= set(TARGETS)


def test_ci_tests_the_versions_of_python_that_the_package_names():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    prefix = "Programming Language :: Python :: 3."
    named = [c.removeprefix(prefix[:-2]) for c in PROJECT["classifiers"] if prefix in c]
    assert jobs["test"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_templates_are_yaml():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
    assert yaml.safe_load(read("CITATION.cff"))["cff-version"] == "1.2.0"


def test_the_readme_names_targets_that_exist():
    named = re.findall(r"\bmake ([a-z-]+)", read("README.md") + read("CONTRIBUTING.md"))
    code = {
        n for n in named if f"`make {n}" in read("README.md") + read("CONTRIBUTING.md")
    }
    assert code
    assert code <= set(TARGETS)


def test_make_help_lists_every_target():
    result = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = re.findall(r"^  make (\S+)", result.stdout, re.MULTILINE)
    assert listed == TARGETS
