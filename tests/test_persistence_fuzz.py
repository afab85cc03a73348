"""Mutated model files are refused, or they are sound models."""

import copy
import os
import warnings

import numpy as np
import pandas as pd
import pytest
from model_files import X, described_models, outputs

from sklearn_fpe import FPEClassifier, FPETransformer, ModelFileError, __version__, load
from sklearn_fpe._persistence import _file

HOSTILE = [
    *(None, True, False, -1, 0, 1, 2, 2**31, 2**63, 10**30, 0.5, -1e300, 1e38),
    *("", "x", "\0", "../../x", "__import__('os')", "é" * 300, [], {}, [[]], [0] * 99),
    *({"tuple": []}, {"dict": [[1, 2]]}, {"float": "inf"}, {"array": {}}),
    {"array": {"dtype": "str4", "values": ["a", "b"]}},
]
SPECIAL = [np.nan, np.inf, -np.inf, 0, -1, 1, 1e30, -3e38, 1e-45, 255]


def places(value, place=()):
    """All places in JSON."""
    if place:
        yield place
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*place, key))


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


def mutate_json(rng, model, other):
    """Replace, drop, repeat or transplant parts of the JSON."""
    model = copy.deepcopy(model)
    for _ in range(rng.integers(1, 3)):
        found = list(places(model))
        place = found[rng.integers(len(found))]
        *inner, last = place
        parent = model
        for key in inner:
            parent = parent[key]
        kind = rng.integers(6)
        if kind == 0:
            del parent[last]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif kind == 2 and isinstance(parent[last], int):
            parent[last] += int(rng.integers(-3, 4))
        elif kind == 3:
            theirs = list(places(other))
            value = other
            for key in theirs[rng.integers(len(theirs))]:
                value = value[key]
            parent[last] = copy.deepcopy(value)
        else:
            parent[last] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])
        if not isinstance(model, dict) or not model:
            break
    return model


def mutate_arrays(rng, arrays, other):
    """Change values, shapes and types; drop, add and exchange arrays."""
    arrays = {name: array.copy() for name, array in arrays.items()}
    name = list(arrays)[rng.integers(len(arrays))]
    array = arrays[name]
    kind = rng.integers(8)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[f"{name}x"] = array
    elif kind == 2:
        arrays[name] = array.astype(_any(rng, list(_file.DTYPES.values())))
    elif kind == 3:
        arrays[name] = _any(
            rng,
            [array.ravel(), array[None], array[:-1] if array.ndim else array, array.T],
        )
    elif kind == 4:
        arrays[name] = other.get(name, array)
    elif kind == 5 and array.size:
        raw = bytearray(array.tobytes())
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        arrays[name] = np.frombuffer(raw, array.dtype).reshape(array.shape)
    elif array.size:
        flat = array.reshape(-1)
        value = np.array(SPECIAL[rng.integers(len(SPECIAL))])
        flat[rng.integers(array.size)] = value.astype(array.dtype)
    return arrays


def _any(rng, options):
    return options[rng.integers(len(options))]


def check_sound(estimator):
    """Check that what was loaded predicts finite numbers of the right shape."""
    n_features = estimator.n_features_in_
    names = getattr(estimator, "feature_names_in_", None)
    for rows in (X, X[:1].astype(np.float32)):
        given = np.resize(rows, (len(rows), n_features))
        if names is not None:
            given = pd.DataFrame(given, columns=names)
        for output in outputs(estimator, given):
            assert len(output) == len(rows)
            if output.dtype.kind == "f":
                assert np.isfinite(output).all()
        if isinstance(estimator, FPETransformer):
            assert estimator.transform(given).shape[1] == estimator._n_features_out
        elif isinstance(estimator, FPEClassifier):
            assert estimator.predict_proba(given).shape[1] == len(estimator.classes_)
            known = np.isin(estimator.predict(given), estimator.classes_)
            assert known.all() or estimator._targets.kind == "multilabel"
    assert estimator.n_nonzero_ >= 1
    assert all(np.isfinite(c.data).all() for c in estimator.coefs_)


def fuzz(packed, path, seed, n):
    """Load `n` mutated files; return how many were let in."""
    rng = np.random.default_rng(seed)
    names = list(packed)
    n_sound = 0
    for i in range(n):
        (model, arrays), (other, other_arrays) = (
            packed[_any(rng, names)],
            packed[_any(rng, names)],
        )
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            if i % 3 == 0:
                data = _file.pack(model, arrays, __version__)
                data = mutate_bytes(rng, data, _file.pack(other, other_arrays, "1"))
            elif i % 3 == 1:
                data = _file.pack(mutate_json(rng, model, other), arrays, __version__)
            else:
                arrays = mutate_arrays(rng, arrays, other_arrays)
                data = _file.pack(model, arrays, __version__)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*(Using the CPU|saved by)")
                loaded = load(path)
        except ModelFileError:
            continue
        try:
            check_sound(loaded)
        except Exception as error:
            raise AssertionError(f"seed {seed}, file {i}: {error!r}") from error
        n_sound += 1
    return n_sound


N_FUZZ = int(os.environ.get("FPE_FUZZ_FILES", "300"))


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_file_is_refused_or_sound(seed, tmp_path):
    n_sound = fuzz(described_models(), tmp_path / "model", seed, N_FUZZ)
    # Both happen, or the mutations are none: a changed bias is still a bias.
    assert 0.02 * N_FUZZ < n_sound < 0.6 * N_FUZZ
