"""Loading takes memory in proportion to a file's bytes, whatever the file says."""

import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from model_files import described_models, make, pack, raw_file, unpack, with_value

from sklearn_fpe import ModelFileError, load, save

ROOT = Path(__file__).parents[1]
MEGABYTE = 10**6

MEASURE = """
import json, sys
from pathlib import Path
from benchmarks import fuzz, _fuzz_watch

folder = Path(sys.argv[1])
(folder / "warm").mkdir()
fuzz.warm_up(folder / "warm")
found = {}
for path in sorted(folder.glob("*.model")):
    peaks = []
    for measure in (_fuzz_watch.memory_used, _fuzz_watch.memory_asked):
        with measure() as peak:
            try:
                fuzz.load(path)
                outcome = "loaded"
            except fuzz.ModelFileError as error:
                outcome = str(error)
            except MemoryError:
                outcome = "MemoryError"
        peaks.append(peak.n_bytes)
    found[path.stem] = *peaks, outcome
print(json.dumps(found))
"""


def measure(files, folder):
    """Load files in a process of its own; return bytes used, asked for, and outcome."""
    for name, content in files.items():
        (folder / f"{name}.model").write_bytes(content)
    command = [sys.executable, "-c", MEASURE, str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def with_parameter(name, value):
    model, arrays = described_models()["multiclass"]
    return pack(with_value(model, ["parameters", name], value), arrays)


def masked(n_units, n_inputs=1000, as_bits=True):
    """A file of a layer whose mask keeps nothing but one edge of every unit."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, n_inputs))
    model, arrays = describe(
        make(hidden_layer_sizes=(4,), split="random").fit(X, np.arange(20) % 3)
    )
    mask = np.zeros((n_units, n_inputs), dtype=bool)
    mask[:, 0] = True
    bits = np.packbits(mask) if as_bits else mask
    ones = np.ones(n_units, np.float32)
    network = model["learned"]["network"]["layers"]
    network = [
        network[0] | {"shape": list(mask.shape)},
        {"kind": "dense", "shape": [3, n_units]},
    ]
    for place, value in [
        (["network", "layers"], network),
        (["recipe", "shape", "hidden"], [n_units]),
        (["recipe", "shape", "expansion"], [1]),
        (["recipe", "budget"], 2**50),
    ]:
        model = with_value(model, ["learned", *place], value)
    name = "network.layers"
    arrays = {
        **arrays,
        **{f"{name}.0.mask": bits, f"{name}.0.weight": ones, f"{name}.0.bias": ones},
        f"{name}.1.weight": np.ones((3, n_units), np.float32),
        "network.parents.0": np.arange(n_units, dtype=np.int32),
    }
    arrays.pop(f"{name}.1.mask", None)
    return pack(model, arrays)


def describe(estimator):
    """What the file of an estimator holds."""
    with tempfile.TemporaryDirectory() as folder:
        save(estimator, Path(folder, "model"))
        return unpack(Path(folder, "model").read_bytes())


# The example that asked for 50 GB: 17 kB.
LONG_TEXTS = [{"array": {"dtype": "str33000000", "values": ["a", "b"]}}] * 200


def hostile_files():
    """Yield names, files and what is wrong with them; None: they may be loaded."""
    model, arrays = described_models()["multiclass"]
    yield "long texts", with_parameter("feature_groups", LONG_TEXTS), "array of texts"
    for name, value in {"tuple": {"tuple": LONG_TEXTS}, "key": [LONG_TEXTS]}.items():
        yield f"texts {name}", with_parameter("class_weight", value), "array of texts"
    classes = {"dtype": "str9000000", "values": [str(i) for i in range(100, 999)]}
    place = ["learned", "targets", "classes", "array"]
    texts = with_value(model, place, classes)
    yield "classes", pack(texts, arrays), "array of texts"
    texts = with_value(model, ["learned", "recipe", "groups"], LONG_TEXTS)
    yield "groups", pack(texts, arrays), "array of texts"
    values = {
        "lists": [],
        "listed": [0],
        "nested": [[[]]],
        "dicts": {},
        "pairs": {"": 0},
        "nested dicts": {"": {"": {}}},
        "numbers": 9999,
        "texts": "ab",
        "wide": "\U0001f600",
        "floats": 0.5,
    }
    for name, value in values.items():
        for n in (20_000, 600_000):
            content = with_parameter("feature_groups", [value] * n)
            yield f"{name} {n}", content, None if n == 20_000 else "memory|header must"
            table = {"__metadata__": {}, "a": [value] * n}
            yield f"header {name} {n}", raw_file(table), "memory|header must|no model"
    wide = ["\U0001f600" + "a" * 4 * MEGABYTE]
    yield "wide text", with_parameter("feature_groups", wide), None
    escaped = json.dumps(wide, ensure_ascii=False)
    table = {"__metadata__": {"sklearn_fpe": escaped}}
    content = raw_file(json.dumps(table, ensure_ascii=False).encode())
    yield "wide header", content, "format_version"
    digits = raw_file(b'{"a": ' + b"9" * 4000 + b"}")
    yield "digits", digits, "JSON of the header"
    zeros = {f"a{i}": np.zeros(0, np.float32) for i in range(60_000)}
    yield "small arrays", pack(model, arrays | zeros), "memory"
    n = 30_000
    for shape in ([n, n, 0], [0, n, n], [n, 0, n]):
        table = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        header = {"__metadata__": {"sklearn_fpe": "{}"}, "a": table, "b": "c" * n}
        yield f"no size {shape.index(0)}", raw_file(header), "format_version"
    hidden = with_value(model, ["learned", "recipe", "shape", "hidden"], [6] * 100_000)
    yield "hidden", pack(hidden, arrays), "expansion"
    names = with_value(model, ["feature_names"], ["a"] * 100_000)
    yield "names", pack(names, arrays), "feature_names"
    labels = {"dtype": "int64", "values": list(range(100_000))}
    labels = with_value(model, place, labels)
    yield "labels", pack(labels, arrays), "."
    yield "mask", masked(2000), None
    yield "large mask", masked(100_000), "memory"
    curve = arrays | {"history.losses": np.ones(MEGABYTE)}
    yield "curve", pack(model, curve), None


@cache
def dense_file():
    """A file of 12 MB, most of it weights."""
    rng = np.random.default_rng(0)
    estimator = make(hidden_layer_sizes=(2000,), expansion=1, max_iter=1)
    X = rng.normal(size=(20, 1500))
    return pack(*describe(estimator.fit(X, np.arange(20) % 3)))


def test_no_file_takes_more_memory_than_its_bytes_allow(tmp_path):
    files = {name: (content, match) for name, content, match in hostile_files()}
    found = measure({name: content for name, (content, _) in files.items()}, tmp_path)
    for name, (content, match) in files.items():
        used, asked, outcome = found[name]
        bound = 10 * len(content) + 64 * MEGABYTE
        assert max(used, asked) <= bound, (name, len(content), found[name])
        assert outcome != "MemoryError", name
        if match is not None:
            assert outcome != "loaded", name
            assert re.search(match, outcome), (name, outcome)


def test_the_example_that_asked_for_much_is_refused(tmp_path):
    content = with_parameter("feature_groups", LONG_TEXTS)
    assert len(content) < 20_000
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"array of texts, would take .* memory"):
        load(tmp_path / "model")


def test_a_large_model_takes_no_spare_memory(tmp_path):
    """A file that is sound stays below the part that is in proportion to its bytes."""
    content = dense_file()
    assert len(content) > 12 * MEGABYTE
    used, _, outcome = measure({"dense": content}, tmp_path)["dense"]
    assert outcome == "loaded"
    assert used < 4 * len(content)


def test_a_mask_of_bytes_may_be_large_and_keep_little(tmp_path):
    files = {
        "bits": masked(20_000),
        "bytes": masked(20_000, as_bits=False),
    }
    found = measure(files, tmp_path)
    assert "memory" in found["bits"][2]
    used, asked, outcome = found["bytes"]
    assert outcome == "loaded"
    # 4 bytes of weight and one of mask, besides the file and what is read of it.
    assert max(used, asked) < 8.5 * len(files["bytes"])


@pytest.mark.parametrize(
    ("n_parents", "expansion", "kind"),
    [(256, 2, np.uint8), (256, 8, np.uint8), (640, 8, np.bool_), (320, 32, np.bool_)],
)
def test_a_large_sparse_model_can_be_saved(n_parents, expansion, kind, tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 1000))
    estimator = make(
        hidden_layer_sizes=(n_parents,),
        expansion=expansion,
        split="random",
        max_iter=1,
    )
    estimator.fit(X, np.arange(30) % 10)
    save(estimator, tmp_path / "model")
    _, arrays = unpack((tmp_path / "model").read_bytes())
    assert arrays["network.layers.0.mask"].dtype == kind
    np.testing.assert_array_equal(
        load(tmp_path / "model").predict_proba(X), estimator.predict_proba(X)
    )


def test_a_large_sparse_ensemble_can_be_saved(tmp_path):
    """No network is large enough to have its mask stored as bytes; all of them are."""
    X = np.random.default_rng(0).normal(size=(30, 1000))
    estimator = make(hidden_layer_sizes=(110,), expansion=32, split="random")
    estimator.set_params(max_iter=1, n_estimators=5).fit(X, np.arange(30) % 10)
    save(estimator, tmp_path / "model")
    np.testing.assert_array_equal(
        load(tmp_path / "model").predict_proba(X), estimator.predict_proba(X)
    )


@pytest.mark.parametrize("n_features", [20_000])
def test_many_columns_with_long_names_can_be_saved(n_features, tmp_path):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(20, n_features)).astype(np.float32))
    X.columns = [f"column {i:050}" for i in range(n_features)]
    estimator = make(hidden_layer_sizes=(2,), expansion=1, max_iter=1)
    estimator.fit(X, np.arange(20) % 3)
    save(estimator, tmp_path / "model")
    assert list(load(tmp_path / "model").feature_names_in_) == list(X.columns)
