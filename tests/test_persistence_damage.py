"""Model files that are damaged or hostile are refused, for the right reason."""

import copy
import io
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from model_files import (
    CODES,
    X,
    described_models,
    fitted_models,
    header_of,
    make,
    pack,
    raw_file,
    unpack,
    with_value,
    write,
)

from sklearn_fpe import FPEClassifier, ModelFileError, load, save
from sklearn_fpe._io import _file


@pytest.fixture
def fitted():
    return fitted_models()


@pytest.fixture
def packed():
    return described_models()


# --------------------------------------------------------------------------------------
# Damage
# --------------------------------------------------------------------------------------


def test_a_truncated_file_is_an_error(fitted, tmp_path):
    path = tmp_path / "model"
    save(fitted["multiclass"], path)
    data = path.read_bytes()
    for length in {*range(40), *range(0, len(data), 97), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(ModelFileError):
            load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ModelFileError, match="truncated or too long"):
        load(path)


def test_a_flipped_bit_in_the_arrays_is_an_error(fitted, tmp_path):
    path = tmp_path / "model"
    save(fitted["multiclass"], path)
    data = path.read_bytes()
    for place in range(len(data) - 1, len(data) - 400, -37):
        path.write_bytes(
            data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        )
        with pytest.raises(ModelFileError, match="checksum"):
            load(path)


def test_what_is_no_file_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match="regular file"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelFileError, match="regular file"):
            load(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "truncated"),
        (b"PK\3\4 a pickle of something", "truncated"),
        ((2**63).to_bytes(8, "little") + b"{}", "truncated"),
        (raw_file(b"{"), "JSON of the header"),
        (raw_file(b"\xff\xfe"), "JSON of the header"),
        (raw_file(b"[" * 100_000), "JSON of the header"),
        (raw_file(b'{"a": 1, "a": 2}'), "comes twice"),
        (raw_file(b'{"a": NaN}'), "no number of JSON"),
        (raw_file(b'{"a": 1e999}'), "too large"),
        (raw_file(b'{"a": ' + b"9" * 5000 + b"}"), "JSON of the header"),
        (raw_file({}), "no model file"),
        (raw_file({"__metadata__": []}), "no model file"),
        (raw_file({"__metadata__": {"sklearn_fpe": 1}}), "no model file"),
        (raw_file({"__metadata__": {"sklearn_fpe": "[["}}), "JSON of the metadata"),
        (raw_file({"__metadata__": {"sklearn_fpe": "[]"}}), "format_version"),
        (
            raw_file({"__metadata__": {"sklearn_fpe": '{"format_version": 1}'}}),
            "must have the fields",
        ),
    ],
)
def test_another_file_is_an_error(content, match, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=match):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", [2**62, 4]),
        ("shape", [10**6] * 10**4),
        ("shape", [-1, 4]),
        ("shape", [True]),
        ("shape", None),
        ("shape", "12"),
        ("dtype", "F16"),
        ("dtype", ["F32"]),
        ("data_offsets", [0, 2**62]),
        ("data_offsets", [-4, 8]),
        ("data_offsets", None),
    ],
)
def test_tables_that_lie_are_an_error(name, value, packed, tmp_path):
    header, rest = header_of(pack(*packed["multiclass"]))
    header["network.layers.0.bias"][name] = value
    path = tmp_path / "model"
    path.write_bytes(raw_file(header, rest))
    with pytest.raises(ModelFileError):
        load(path)


def test_no_claim_allocates_memory(packed, tmp_path):
    """Large claims in a small file and a large file of holes cost next to nothing."""
    path = tmp_path / "model"
    model, arrays = packed["multiclass"]
    claims = []
    for place, value in [
        (("learned", "network", "layers", 0, "shape"), [2**30, 2**30]),
        (("learned", "recipe", "shape", "expansion"), [2**31]),
        (
            ("learned", "targets", "classes", "array"),
            {"dtype": "str9000000", "values": [str(i) for i in range(100, 999)]},
        ),
    ]:
        claims.append(pack(with_value(model, place, value), arrays))
    header, rest = header_of(claims[0])
    header["network.layers.0.bias"] |= {"shape": [2**38], "data_offsets": [0, 2**40]}
    claims.append(raw_file(header, rest))
    load(write(path, model, arrays))  # what is imported late is imported
    tracemalloc.start()
    for content in claims:
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            load(path)
    with path.open("wb") as file:
        file.write((2**35).to_bytes(8, "little"))
        file.truncate(2**36)
    with pytest.raises(ModelFileError, match="header must have at most"):
        load(path)
    with path.open("wb") as file:
        file.write(raw_file({"__metadata__": {}}))
        file.truncate(2**36)
    with pytest.raises(ModelFileError):
        load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_nothing_is_run(fitted, tmp_path):
    """No import, no compilation, no unpickling, no process, no file but the model."""
    path = tmp_path / "model"
    save(fitted["multiclass"], path)
    code = f"""
import sys
import sklearn_fpe._io as p
path = {str(path)!r}
p.load(path)
seen = []
def hook(event, args):
    family = event.split(".")[0]
    if family in ("exec", "compile", "import", "pickle", "os", "subprocess", "marshal",
                  "socket", "shutil", "ctypes", "code") or (
        event == "open" and args[0] != path
    ):
        seen.append((event, str(args)[:80]))
sys.addaudithook(hook)
p.load(path)
seen_good, seen[:] = list(seen), []
data = bytearray(open(path, "rb").read())
data[-1] ^= 1
open(path, "wb").write(data)
try:
    p.load(path)
except p.ModelFileError:
    print("refused", seen_good, seen)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stdout == "refused [] []\n", result.stdout + result.stderr


def test_a_file_that_changes_while_it_is_read_is_an_error(packed):
    class Changing(io.BytesIO):
        def seek(self, place):
            self.truncate(len(data) - 5)
            return super().seek(place)

    data = pack(*packed["binary"])
    with pytest.raises(ModelFileError, match="changed while it was read"):
        _file._read(Changing(data), len(data))


# --------------------------------------------------------------------------------------
# Sound checksum, unsound model
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "place", "value", "match"),
    [
        ("binary", ["class"], "Exception", "class must be one of"),
        ("binary", ["class"], "FPERegressor", "parameters must be among"),
        ("binary", ["parameters", "memory"], "/tmp/x", "parameters must be among"),
        ("binary", ["parameters", "skorch_callbacks"], [], "must be among"),
        ("binary", ["parameters", "__class__"], 1, "parameters must be among"),
        ("binary", ["parameters", "max_iter"], -1, "max_iter"),
        ("binary", ["parameters", "max_iter"], 2**70, "max_iter must be an integer"),
        ("binary", ["parameters", "split"], "os.system", "split"),
        ("raw", ["parameters", "class_weight"], {"dict": [[2**64, 1]]}, "integer in"),
        (
            "raw",
            ["parameters", "class_weight"],
            {"dict": [[-(2**64), 1]]},
            "integer in",
        ),
        ("binary", ["parameters", "tol"], {"float": "nan"}, "tol must be one of"),
        ("binary", ["parameters", "tol"], {"call": "x"}, "must have the fields dict"),
        ("binary", ["parameters", "expansion"], [[[[[[1]]]]]], "nested deeper"),
        ("binary", ["learned", "recipe", "activation"], "softmax", "activation"),
        ("binary", ["learned", "recipe", "shape", "hidden"], [0], "hidden must"),
        ("binary", ["learned", "recipe", "shape", "hidden"], [6, 6], "expansion"),
        ("binary", ["learned", "recipe", "shape", "hidden"], [2], r"\[0, 2\)"),
        (
            "binary",
            ["learned", "recipe", "shape", "expansion"],
            [1],
            "more than 1 times",
        ),
        (
            "binary",
            ["learned", "recipe", "shape", "expansion"],
            [9],
            "at most the inputs",
        ),
        ("binary", ["learned", "recipe", "budget"], 1, "number of parameters"),
        ("binary", ["learned", "phase"], "done", "phase must be one of"),
        ("binary", ["learned", "phase"], "warm-up", "must be dense"),
        ("binary", ["learned", "history", "n_iter"], 3, "n_iter"),
        ("binary", ["learned", "history", "n_iter"], True, "n_iter"),
        ("binary", ["learned", "recipe", "seeds"], {}, "seeds must have the fields"),
        ("binary", ["learned", "recipe", "seeds", "init"], 2**32, "seeds.init"),
        ("binary", ["feature_names"], ["a"], "feature_names must be a list of 8"),
        ("binary", ["feature_names"], [1] * 8, "feature_names must be texts"),
        ("binary", ["learned", "network", "layers"], [], "layers.0.bias is of no use"),
        (
            "binary",
            ["learned", "network", "layers", 0, "kind"],
            "conv",
            "kind of learned.network.layers.0",
        ),
        (
            "binary",
            ["learned", "network", "layers", 0, "kind"],
            "masked",
            "layers.0 must have the fields",
        ),
        ("binary", ["learned", "network", "layers", 0, "shape"], [2, 4, 7], "layers.0"),
        (
            "binary",
            ["learned", "network", "layers", 0, "shape"],
            [0, 4, 6],
            "shape of learned.network.layers.0",
        ),
        (
            "dense",
            ["learned", "network", "layers", 0, "shape"],
            [6, 7],
            "layers.0 must have 8 inputs",
        ),
        (
            "dense",
            ["learned", "network", "layers", 1, "shape"],
            [4, 6],
            "layers.1.weight",
        ),
        (
            "binary",
            ["learned", "targets"],
            {"one_dimensional": True},
            "must have the fields one_dimensional",
        ),
        (
            "multilabel",
            ["learned", "targets", "classes", "array", "values"],
            [0, 1, 3],
            "of a multilabel",
        ),
        (
            "binary",
            ["learned", "targets", "kind"],
            "multiclass",
            "classes of a multiclass",
        ),
        (
            "binary",
            ["learned", "targets", "classes", "array", "dtype"],
            "int64",
            "fit the type int64",
        ),
        (
            "binary",
            ["learned", "targets", "classes", "array", "dtype"],
            "V9",
            "type of The classes",
        ),
        (
            "binary",
            ["learned", "targets", "classes", "array", "dtype"],
            "str99",
            "fit the type str99",
        ),
        (
            "binary",
            ["learned", "targets", "classes", "array", "values"],
            [True, False],
            "increasing order",
        ),
        (
            "binary",
            ["learned", "targets", "classes", "array", "values"],
            [True, True],
            "increasing order",
        ),
        (
            "binary",
            ["learned", "targets", "classes", "array"],
            {"dtype": "object", "values": ["a", 1]},
            "increasing order",
        ),
        (
            "binary",
            ["learned", "targets", "classes", "array"],
            {"dtype": "uint8", "values": [0, 256]},
            "fit the type uint8",
        ),
        (
            "binary",
            ["learned", "targets", "classes", "array"],
            {"dtype": "float16", "values": [0.0, 1e30]},
            "fit the type float16",
        ),
        ("raw", ["learned", "targets", "class_weight"], 3, "class_weight"),
        (
            "raw",
            ["learned", "targets", "class_weight"],
            {"dict": [[0]]},
            "class_weight",
        ),
        ("one target", ["learned", "targets", "one_dimensional"], 1, "one_dimensional"),
        ("targets", ["learned", "targets", "one_dimensional"], True, "one_dimensional"),
        (
            "raw",
            ["learned", "targets", "class_weight"],
            {"array": {"dtype": "int8", "values": [1, 2]}},
            "class_weight must be a dict",
        ),
        ("binary", ["learned", "history", "best_iter"], -1, "best_iter"),
        ("binary", ["learned", "recipe", "shape", "skip"], 1, "skip must be a bool"),
        ("binary", ["learned", "recipe", "shape", "skip"], True, "skip connection if"),
        ("linear", ["learned", "recipe", "shape", "skip"], True, "skip must be a bool"),
        ("skip", ["learned", "recipe", "shape", "skip"], False, "skip connection if"),
        (
            "skip",
            ["learned", "network", "skip", "kind"],
            "block",
            "kind of learned.network.skip",
        ),
        ("skip", ["learned", "network", "skip", "shape"], [8, 3], "network.skip"),
        ("learned", ["learned", "recipe", "prune", "interval"], 0, "prune.interval"),
        ("learned", ["learned", "recipe", "prune", "begin"], "x", "prune.begin"),
        (
            "learned",
            ["learned", "recipe", "prune", "rule"],
            "shared",
            "prune.rule must be",
        ),
        ("learned", ["learned", "recipe", "prune", "rule"], "magnitude", "the fields"),
        ("learned", ["parameters", "prune", "end"], -1, "prune.end"),
        (
            "learned",
            ["learned", "recipe", "split"],
            {"rule": "shared", "a": 1},
            "split must be one of",
        ),
        (
            "targets",
            ["learned", "targets", "extra"],
            True,
            "targets must have the fields",
        ),
    ],
)
def test_validation_finds_what_json_gets_wrong(
    case, place, value, match, packed, tmp_path
):
    model, arrays = packed[case]
    path = write(tmp_path / "model", with_value(model, place, value), arrays)
    with pytest.raises(ModelFileError, match=match):
        load(path)


def edited(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("case", "name", "edit", "match"),
    [
        ("dense", "network.layers.0.weight", lambda a: edited(a, 0, np.nan), "finite"),
        ("dense", "network.layers.1.bias", lambda a: edited(a, 0, np.inf), "finite"),
        (
            "dense",
            "network.layers.0.weight",
            lambda a: a.astype(float),
            "must be float32",
        ),
        ("dense", "network.layers.0.weight", lambda a: a.ravel(), "of shape"),
        ("dense", "network.parents.0", lambda a: edited(a, 0, -1), r"in \[0, 6\)"),
        ("dense", "network.parents.0", lambda a: edited(a, 0, 6), r"in \[0, 6\)"),
        ("dense", "network.parents.0", lambda a: edited(a, 0, 5), "no parent more"),
        (
            "multiclass",
            "network.layers.0.mask",
            lambda a: a ^ 1,
            "network.layers.0.weight",
        ),
        (
            "multiclass",
            "network.layers.0.mask",
            lambda a: a[:-1],
            "network.layers.0.mask",
        ),
        (
            "multiclass",
            "network.layers.0.weight",
            lambda a: a[:-1],
            "network.layers.0.weight",
        ),
        (
            "binary",
            "network.layers.0.inputs",
            lambda a: edited(a, (0, 0), 8),
            r"in \[0, 8\)",
        ),
        ("binary", "network.layers.0.inputs", lambda a: a * 0, "name no input twice"),
        ("one target", "affine.scale", lambda a: edited(a, 0, 0), "above zero"),
        ("one target", "affine.scale", lambda a: edited(a, 0, 5e-324), "above zero"),
        ("one target", "affine.mean", lambda a: a[:-1], "affine.mean"),
        ("one target", "affine.mean", lambda a: a * np.inf, "finite"),
        ("one target", "targets.affine.scale", lambda a: -a, "above zero"),
        ("one target", "moments.m2", lambda a: -a - 1, "negative"),
        ("one target", "moments.weight", lambda a: a * 0, "above zero"),
        ("one target", "moments.weight", lambda a: None, "moments"),
        ("one target", "history.losses", lambda a: a * np.nan, "finite"),
        ("one target", "history.losses", lambda a: None, "missing"),
        ("one target", "moments.unit", lambda a: a * 0, "above zero"),
        ("one target", "history.best_score", lambda a: a[None], "best_score"),
        ("skip", "network.skip.weight", lambda a: a * np.nan, "finite"),
        ("skip", "network.skip.bias", lambda a: np.zeros(3, np.float32), "of no use"),
        ("skip", "network.skip.mask", lambda a: a.astype(bool), "network.skip.mask"),
        ("one target", "spare", lambda a: np.zeros(3), "of no use"),
        ("one target", "network.input_mean", lambda a: np.zeros(3), "input_scale"),
    ],
)
def test_validation_finds_what_arrays_get_wrong(
    case, name, edit, match, packed, tmp_path
):
    model, arrays = packed[case]
    arrays = dict(arrays)
    found = edit(arrays.pop(name, None))
    if found is not None:
        arrays[name] = np.asarray(found)
    with pytest.raises(ModelFileError, match=match):
        load(write(tmp_path / "model", model, arrays))


def test_outputs_that_a_layer_has_not_are_found(tmp_path):
    estimator = make(prune="structured", hidden_layer_sizes=(11,), expansion=3)
    save(estimator.fit(X, CODES), tmp_path / "model")
    model, arrays = unpack((tmp_path / "model").read_bytes())
    outputs = arrays["network.layers.0.outputs"]
    for wrong, match in [
        (outputs[::-1], "must increase"),
        (outputs[:0], "must increase"),
        (outputs[1:], "keep nothing"),
        (outputs * 0 + 99, r"in \[0, "),
    ]:
        path = write(
            tmp_path / "model", model, arrays | {"network.layers.0.outputs": wrong}
        )
        with pytest.raises(ModelFileError, match=match):
            load(path)


def test_a_bit_too_many_is_found(tmp_path):
    estimator = make(split="random", hidden_layer_sizes=(6,)).fit(X[:, :7], CODES)
    save(estimator, tmp_path / "model")
    model, arrays = unpack((tmp_path / "model").read_bytes())
    n_bits = estimator.module_.layers[0].mask.numel()
    assert n_bits % 8, "the last byte of the mask has room"
    mask = arrays["network.layers.0.mask"].copy()
    mask[-1] |= 1
    with pytest.raises(ModelFileError, match="end in zero bits"):
        load(write(tmp_path / "model", model, arrays | {"network.layers.0.mask": mask}))


def test_a_parameter_younger_than_the_file_has_its_default(packed, tmp_path):
    model, arrays = copy.deepcopy(packed["binary"])
    del model["parameters"]["precision"]
    loaded = load(write(tmp_path / "model", model, arrays))
    assert loaded.precision == FPEClassifier().precision


def test_feature_names_that_no_fit_would_take_are_found(packed, tmp_path):
    model, arrays = packed["names"]
    model = with_value(model, ["feature_names", 1], model["feature_names"][0])
    with pytest.raises(ModelFileError, match="feature_names"):
        load(write(tmp_path / "model", model, arrays))


def test_a_byte_of_a_mask_that_is_no_bool_is_found(packed, tmp_path):
    model, arrays = packed["multiclass"]
    shape = tuple(model["learned"]["network"]["layers"][0]["shape"])
    mask = np.unpackbits(arrays["network.layers.0.mask"], count=np.prod(shape))
    mask = mask.reshape(shape)
    path = tmp_path / "model"
    for value, match in [(1, None), (2, "zeros and ones")]:
        changed = arrays | {
            "network.layers.0.mask": (mask * np.uint8(value)).view(bool)
        }
        write(path, model, changed)
        if match is None:
            load(path)
        else:
            with pytest.raises(ModelFileError, match=match):
                load(path)


def test_messages_repeat_no_value_of_any_length(packed, tmp_path):
    model, arrays = packed["binary"]
    long = "y" * 10**5
    places = [
        *(["parameters", name] for name in model["parameters"]),
        *(["learned", "recipe", name] for name in model["learned"]["recipe"]),
        *(["learned", "targets", "classes"], ["class"], ["feature_names"]),
    ]
    lengths = []
    for place in places:
        for value in (long, [long] * 9, {long: 1}, {"tuple": [0] * 10**4}):
            path = write(tmp_path / "model", with_value(model, place, value), arrays)
            try:
                load(path)
            except ModelFileError as error:
                lengths.append(len(str(error)))
    assert len(lengths) > 50
    assert max(lengths) < 500
