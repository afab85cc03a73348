"""Model files to fuzz with: small models of every kind, and ways to damage a file.

Files are taken apart and put together here as anybody could, with the checksum that
fits, and not by the library's own code.
"""

import copy
import hashlib
import json
import os
import tempfile
from functools import cache

import numpy as np
import pandas as pd
import safetensors.numpy

from sklearn_fpe import (
    FPEClassifier,
    FPERegressor,
    FPETransformer,
    __version__,
    load,
    save,
)
from sklearn_fpe._engine._pruning import Gradual

N_ROWS, N_FEATURES = 50, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N_ROWS, N_FEATURES))
CODES = np.arange(N_ROWS) % 3
REAL = X @ RNG.normal(size=(N_FEATURES, 2)) + 40
INDICATOR = np.stack([CODES > 0, X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
LABELS = np.array(["a", "bc", "é"])[CODES]
FRAME = pd.DataFrame(X, columns=[f"column {i}" for i in range(N_FEATURES)])
OUTPUTS = ("predict", "predict_proba", "decision_function", "transform")


def make(kind=FPEClassifier, **parameters):
    """Make a small estimator."""
    defaults = {"hidden_layer_sizes": (6,), "expansion": 2, "max_iter": 2}
    return kind(**{**defaults, "device": "cpu", "random_state": 0, **parameters})


CASES = {
    "binary": (make(activation="tanh", prune="magnitude"), CODES > 0),
    "multiclass": (make(split="random", class_weight="balanced"), CODES),
    "multilabel": (make(prune="structured", activation="logistic"), INDICATOR),
    "dense": (make(expansion=1, activation="identity"), CODES),
    "raw": (make(standardize=False, class_weight={0: 1.0, 1: 2, 2: 0.5}), CODES),
    "stopped": (make(early_stopping=True, validation_fraction=0.2), CODES),
    "one target": (make(FPERegressor, prune="structured"), REAL[:, 0]),
    "targets": (make(FPERegressor, early_stopping=True), REAL),
    "features": (make(FPETransformer, hidden_layer_sizes=(8, 5)), CODES),
    "real features": (make(FPETransformer, task="regression"), REAL),
    "skip": (make(skip_connection=True, budget=60, activation="silu"), CODES),
    "linear": (make(FPERegressor, hidden_layer_sizes=(), skip_connection=True), REAL),
    "learned": (make(split="learned", prune=Gradual(0, 0.5, 2, 4)), CODES),
    "gradual": (make(prune="gradual", activation="gelu", budget=40), CODES > 0),
    "texts": (make(split="groups", feature_groups=np.array(list("aabbccdd"))), LABELS),
}


@cache
def fitted_models():
    """The fitted estimators, by name; none is to be changed."""
    models = {name: copy.deepcopy(e).fit(X, y) for name, (e, y) in CASES.items()}
    return models | {"names": make().fit(FRAME, CODES)}


@cache
def described_models():
    """What their files hold, JSON and arrays; none is to be changed."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model")
        described = {}
        for name, model in fitted_models().items():
            save(model, path)
            with open(path, "rb") as file:
                described[name] = unpack(file.read())
    return described


# --------------------------------------------------------------------------------------
# The format
# --------------------------------------------------------------------------------------


def header_of(data):
    """Return the header of a file as JSON, and the bytes that follow it."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def raw_file(header, rest=b""):
    """Return a file of a header, JSON or bytes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + rest


def unpack(data):
    """Return the model, JSON, and the arrays of a file."""
    header, _ = header_of(data)
    document = json.loads(header["__metadata__"]["sklearn_fpe"])
    return document["model"], safetensors.numpy.load(data)


def pack(model, arrays, version=__version__, format_version=2):
    """Return a file whose checksum fits, whatever it says."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    document = {"format_version": format_version, "version": version, "model": model}
    table = sorted([name, a.dtype.name, list(a.shape)] for name, a in arrays.items())
    text = json.dumps([document, table], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for _, array in sorted(arrays.items()):
        digest.update(array.reshape(-1).view(np.uint8))
    document["sha256"] = digest.hexdigest()
    return safetensors.numpy.save(arrays, {"sklearn_fpe": json.dumps(document)})


# --------------------------------------------------------------------------------------
# Damage
# --------------------------------------------------------------------------------------

HOSTILE = [
    *(None, True, False, -1, 0, 1, 2, 2**31, 2**63, 2**64, 10**30, 0.5, -1e300, 1e38),
    *("", "x", "\0", "../../x", "__import__('os')", "é" * 300, "a\ud800", [], {}, [[]]),
    *([0] * 99, {"tuple": []}, {"dict": [[1, 2]]}, {"float": "inf"}, {"array": {}}),
    {"array": {"dtype": "str4", "values": ["a", "b"]}},
    {"array": {"dtype": "uint64", "values": [2**64 - 1, 0]}},
    {"array": {"dtype": "object", "values": [None, -(2**64), 0.1]}},
]
SPECIAL = [np.nan, np.inf, -np.inf, 0, -1, 1, 1e30, -3e38, 1e-45, 255]
DTYPES = ["f4", "f8", "i4", "u1", "i8", "?", "f2"]


def pick(rng, options):
    """Draw one of a list."""
    return options[rng.integers(len(options))]


def mutate_bytes(rng, data, other):
    """Flip, cut, splice, repeat or overwrite bytes."""
    data = bytearray(data)
    length = 8 + int.from_bytes(data[:8], "little")
    kind = rng.integers(6)
    # Half of all damage goes to the header.
    end = length if rng.random() < 0.5 else len(data)
    a, b = np.sort(rng.integers(0, end, 2))
    if kind == 0:
        for place in rng.integers(0, end, rng.integers(1, 9)):
            data[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[rng.integers(len(data)) :]
    elif kind == 2:
        data[a:b] = other[a : a + rng.integers(1, len(other))]
    elif kind == 3:
        del data[a:b]
    elif kind == 4:
        data[:8] = int(rng.integers(0, 2**62) >> rng.integers(62)).to_bytes(8, "little")
    else:
        data[a : a + 4] = rng.bytes(rng.integers(1, 8))
    return bytes(data)


def places(value, place=()):
    """All places in JSON."""
    if place:
        yield place
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*place, key))


def value_at(value, place):
    """Return what stands at a place in JSON."""
    for key in place:
        value = value[key]
    return value


def mutate_json(rng, model, other):
    """Replace, drop, repeat or transplant parts of the JSON."""
    model = copy.deepcopy(model)
    for _ in range(rng.integers(1, 3)):
        *inner, last = pick(rng, list(places(model)))
        parent = value_at(model, inner)
        kind = rng.integers(6)
        if kind == 0:
            del parent[last]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif kind == 2 and isinstance(parent[last], int):
            parent[last] += int(rng.integers(-3, 4))
        elif kind == 3:
            value = value_at(other, pick(rng, list(places(other))))
            parent[last] = copy.deepcopy(value)
        else:
            parent[last] = copy.deepcopy(pick(rng, HOSTILE))
        if not isinstance(model, dict) or not model:
            break
    return model


def mutate_arrays(rng, arrays, other):
    """Change values, shapes and types; drop, add and exchange arrays."""
    arrays = {name: array.copy() for name, array in arrays.items()}
    name = pick(rng, list(arrays))
    array = arrays[name]
    kind = rng.integers(8)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[f"{name}x"] = array
    elif kind == 2:
        arrays[name] = array.astype(pick(rng, DTYPES))
    elif kind == 3:
        shorter = array[:-1] if array.ndim else array
        arrays[name] = pick(rng, [array.ravel(), array[None], shorter, array.T])
    elif kind == 4:
        arrays[name] = other.get(name, array)
    elif kind == 5 and array.size:
        raw = bytearray(array.tobytes())
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        arrays[name] = np.frombuffer(raw, array.dtype).reshape(array.shape)
    elif array.size:
        value = np.array(pick(rng, SPECIAL))
        array.reshape(-1)[rng.integers(array.size)] = value.astype(array.dtype)
    return arrays


def inflate(rng, model, arrays):
    """Ask for much memory by few bytes."""
    model, arrays = copy.deepcopy(model), dict(arrays)
    n = int(10 ** rng.uniform(1, 5))
    long_text = {"array": {"dtype": f"str{10 ** rng.integers(3, 9)}", "values": ["a"]}}
    tiny = pick(rng, [[], {}, [[]], [0], {"": 0}, 999, "\U0001f600", "", True, 0.5])
    kind = rng.integers(5)
    if kind == 0:
        # Bits of a mask, of which none is kept.
        layers = model["learned"]["network"]["layers"]
        level = int(rng.integers(len(layers)))
        shape, name = [n, N_FEATURES * 8], f"network.layers.{level}"
        layers[level] = {"kind": "masked", "shape": shape}
        arrays[f"{name}.mask"] = np.zeros(n * N_FEATURES, np.uint8)
        arrays[f"{name}.weight"] = np.zeros(0, np.float32)
        arrays[f"{name}.bias"] = np.zeros(n, np.float32)
    elif kind == 1:
        arrays |= {f"{i}": np.zeros(0, np.float32) for i in range(n // 10)}
    else:
        value = [pick(rng, [long_text, tiny, 2])] * n
        *inner, last = pick(rng, list(places(model)))
        parent = value_at(model, inner)
        parent[last] = pick(rng, [value, {"tuple": value}, {"dict": [[0, value]]}])
    return model, arrays


def mutated_file(rng):
    """Draw a damaged or hostile model file; return how it was made, and its bytes."""
    described = described_models()
    (model, arrays), (other, others) = (
        described[pick(rng, list(described))] for _ in range(2)
    )
    kind = pick(rng, ["bytes", "table", "json", "json", "arrays", "arrays", "memory"])
    # Numbers change their type on the way.
    with np.errstate(all="ignore"):
        if kind == "bytes":
            data = mutate_bytes(rng, pack(model, arrays), pack(other, others))
        elif kind == "table":
            header, rest = header_of(pack(model, arrays))
            data = raw_file(mutate_json(rng, header, header), rest)
        elif kind == "json":
            data = pack(mutate_json(rng, model, other), arrays)
        elif kind == "arrays":
            data = pack(model, mutate_arrays(rng, arrays, others))
        else:
            data = pack(*inflate(rng, model, arrays))
    return kind, data


# --------------------------------------------------------------------------------------
# What is let in
# --------------------------------------------------------------------------------------


def outputs(estimator, X):
    """Everything that an estimator computes of X."""
    return [getattr(estimator, n)(X) for n in OUTPUTS if hasattr(estimator, n)]


def outputs_or_error(estimator, X):
    """Return the outputs, or the message where float64 cannot hold them."""
    try:
        return outputs(estimator, X)
    except ValueError as error:
        if "too large" not in str(error):
            raise
        return str(error)


def rows_for(estimator):
    """Return rows as the estimator knows them, and a single one of them."""
    n_features = estimator.n_features_in_
    for rows in (X, X[:1].astype(np.float32)):
        rows = np.resize(rows, (len(rows), n_features))
        names = getattr(estimator, "feature_names_in_", None)
        yield rows if names is None else pd.DataFrame(rows, columns=names)


def check_sound(estimator):
    """Check that what was loaded predicts finite numbers of the right shape."""
    for rows in rows_for(estimator):
        found = outputs_or_error(estimator, rows)
        if isinstance(found, str):
            continue
        for output in found:
            assert len(output) == len(rows)
            assert output.dtype.kind != "f" or np.isfinite(output).all(), "not finite"
        if isinstance(estimator, FPETransformer):
            n_features = len(estimator.get_feature_names_out())
            assert estimator.transform(rows).shape[1] == n_features
        elif isinstance(estimator, FPEClassifier):
            assert estimator.predict_proba(rows).shape[1] == len(estimator.classes_)
            found = estimator.predict(rows)
            assert found.ndim == 2 or np.isin(found, estimator.classes_).all()
    assert estimator.n_nonzero_ >= 1
    assert estimator.phase_ == "warm-up" or estimator.n_nonzero_ <= estimator.budget_
    assert all(np.isfinite(c.data).all() for c in estimator.coefs_)


def check_saved_again(estimator, path):
    """Check that what was loaded is saved, and loaded once more as it was."""
    save(estimator, path)
    again = load(path)
    assert repr(again.get_params()) == repr(estimator.get_params())
    for rows in rows_for(estimator):
        found, expected = (outputs_or_error(m, rows) for m in (again, estimator))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
    with open(path, "rb") as file:
        first = file.read()
    save(again, path)
    with open(path, "rb") as file:
        assert file.read() == first, "saved twice, the files differ"
