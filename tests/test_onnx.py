"""An exported model, run by ONNX Runtime, is the estimator."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer, to_onnx
from sklearn_fpe._io._onnx import IR_VERSION, OPSET
from sklearn_fpe.nn import Affine

N_ROWS, N_FEATURES = 60, 9
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N_ROWS, N_FEATURES)).astype(np.float32)
CODES = np.arange(N_ROWS) % 3
RNG.shuffle(CODES)
GROUPS = np.arange(N_FEATURES) // 2

EXPANSIONS = [
    *[(split, "magnitude") for split in ("random", "shared", "contiguous")],
    *[(split, "magnitude") for split in ("feature", "groups")],
    *[(split, "structured") for split in ("shared", "contiguous", "feature")],
]
HIDDEN = [(6,), (8, 6)]


def fitted(kind, y, X=X, **parameters):
    parameters = {
        "hidden_layer_sizes": (6,),
        "expansion": 2,
        "max_iter": 3,
        "feature_groups": GROUPS,
        "device": "cpu",
        "random_state": 0,
        **parameters,
    }
    return kind(**parameters).fit(X, y)


def run(model, X):
    """Outputs of a checked model, by name."""
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"X": X}), strict=True))


def check_classifier(clf, X=X):
    outputs = run(to_onnx(clf), X)
    assert list(outputs) == ["label", "probabilities"]
    proba = clf.predict_proba(X)
    assert outputs["probabilities"].dtype == np.float32
    np.testing.assert_allclose(outputs["probabilities"], proba, atol=1e-5)
    label = clf.predict(X)
    assert outputs["label"].shape == label.shape
    # Where two labels are as good as equal, rounding may choose either.
    if label.ndim == 2:
        clear = np.abs(proba - 0.5) > 1e-5
    else:
        clear = np.diff(np.sort(proba, axis=1)[:, -2:], axis=1)[:, 0] > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(outputs["label"][clear], label[clear])
    return outputs


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(("split", "prune"), EXPANSIONS)
def test_every_expansion_is_exported(split, prune, hidden, activation):
    check_classifier(
        fitted(
            FPEClassifier,
            CODES,
            hidden_layer_sizes=hidden,
            split=split,
            prune=prune,
            activation=activation,
        )
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {"hidden_layer_sizes": ()},
        {"skip_connection": True},
        {"skip_connection": True, "split": "learned", "prune": "gradual"},
        {"split": "random", "prune": "gradual", "hidden_layer_sizes": (8, 6)},
        {"activation": "gelu", "skip_connection": True},
        {"activation": "silu", "split": "learned", "prune": "gradual"},
    ],
)
def test_skips_and_gradual_pruning_are_exported(parameters):
    far = X.copy()
    far[:, 0] += np.float32(1e4)
    for rows in (X, far):
        check_classifier(fitted(FPEClassifier, CODES, X=rows, **parameters), rows)
    y = 50 + 3 * X[:, 0] + RNG.normal(size=N_ROWS)
    reg = fitted(FPERegressor, y, **parameters)
    np.testing.assert_allclose(run(to_onnx(reg), X)["y"], reg.predict(X), rtol=1e-5)


def test_the_dense_parent_is_exported():
    check_classifier(fitted(FPEClassifier, CODES, expansion=1))


def test_one_expansion_per_layer_is_exported():
    check_classifier(
        fitted(FPEClassifier, CODES, hidden_layer_sizes=(8, 6), expansion=(1, 3))
    )


@pytest.mark.parametrize("names", [["no", "yes"], ["a", "bb", "a longer ü"]])
@pytest.mark.parametrize("kind", ["U", object])
def test_text_labels_come_out_as_texts(names, kind):
    y = np.array(names)[CODES % len(names)].astype(kind)
    outputs = check_classifier(fitted(FPEClassifier, y))
    assert set(outputs["label"]) <= set(names)


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (np.array([7, -3, 2**40]), np.int64),
        (np.array([3, 250, 4], dtype=np.uint8), np.int64),
        (np.array([False, True]), np.bool_),
        (np.array([-1.0, 4.0, 2.0]), np.float64),
        (np.array([5, 6], dtype=object), np.int64),
    ],
)
def test_other_labels_keep_their_kind(classes, dtype):
    y = classes[CODES % len(classes)]
    if classes.dtype == object:
        clf = fitted(FPEClassifier, y.astype(int))
        clf.learned_.targets.classes = np.array([5, 6], dtype=object)
    else:
        clf = fitted(FPEClassifier, y)
    assert check_classifier(clf)["label"].dtype == dtype


def test_binary_probabilities_have_two_columns():
    outputs = check_classifier(fitted(FPEClassifier, CODES > 0, split="random"))
    assert outputs["probabilities"].shape == (N_ROWS, 2)
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, atol=1e-6)


def test_multilabel_outputs_are_an_indicator_and_sigmoids():
    y = np.stack([CODES > 0, CODES == 1, X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
    outputs = check_classifier(fitted(FPEClassifier, y, split="shared"))
    assert outputs["label"].dtype == np.int64
    assert set(outputs["label"].ravel()) == {0, 1}
    assert np.ptp(outputs["probabilities"].sum(axis=1)) > 0.01


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(("split", "prune"), EXPANSIONS)
def test_a_regressor_predicts_in_the_units_of_the_targets(split, prune, hidden):
    y = 50 + 3 * X[:, 0] + RNG.normal(size=N_ROWS)
    several = np.stack([y, -1e3 * y, np.full(N_ROWS, 7.0)], axis=1)
    for target in (y, several):
        reg = fitted(
            FPERegressor, target, split=split, prune=prune, hidden_layer_sizes=hidden
        )
        outputs = run(to_onnx(reg), X)
        assert list(outputs) == ["y"]
        assert outputs["y"].dtype == np.float32
        expected = reg.predict(X)
        assert outputs["y"].shape == expected.shape
        # Rounding is relative to the units of a column.
        units = np.abs(expected).max(axis=0)
        np.testing.assert_allclose(outputs["y"] / units, expected / units, atol=1e-5)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(("split", "prune"), EXPANSIONS)
def test_a_transformer_gives_its_activations(split, prune, hidden):
    transformer = fitted(
        FPETransformer, CODES, split=split, prune=prune, hidden_layer_sizes=hidden
    )
    outputs = run(to_onnx(transformer), X)
    assert list(outputs) == ["activations"]
    np.testing.assert_allclose(
        outputs["activations"], transformer.transform(X), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("split", "prune"), EXPANSIONS)
def test_the_center_is_subtracted(split, prune):
    far = X.copy()
    far[:, [0, 4]] += np.float32(1e4)
    clf = fitted(FPEClassifier, CODES, X=far, split=split, prune=prune)
    assert clf.module_.input_mean is not None
    check_classifier(clf, far)


def test_any_number_of_rows_will_do():
    for kind, y in ((FPEClassifier, CODES), (FPERegressor, X[:, 0])):
        model = to_onnx(fitted(kind, y, prune="structured"))
        for n_rows in (1, 7):
            for output in run(model, X[:n_rows]).values():
                assert len(output) == n_rows


def test_a_model_in_its_warm_up_is_exported():
    clf = FPEClassifier((6,), warmup=5, random_state=0)
    clf.partial_fit(X, CODES)
    assert clf.phase_ == "warm-up"
    check_classifier(clf)


def matrices(model):
    return {c.name: tuple(c.dims) for c in model.graph.initializer if len(c.dims) > 1}


def operations(model):
    return [node.op_type for node in model.graph.node]


def test_blocks_run_as_one_batched_product():
    clf = fitted(FPEClassifier, CODES, split="shared", prune="structured")
    blocks = tuple(clf.module_.layers[0].weight.mT.shape)
    model = to_onnx(clf)
    assert len(blocks) == 3
    assert blocks in matrices(model).values()
    assert operations(model).count("MatMul") == 2


def test_contiguous_blocks_gather_no_columns():
    clf = fitted(
        FPEClassifier, CODES, X=X[:, :8], split="contiguous", feature_groups=None
    )
    assert not clf.module_.layers[0].reorders_columns
    # What is left gathers the label.
    assert operations(to_onnx(clf)).count("Gather") == 1


def test_versions_are_stated():
    model = to_onnx(fitted(FPEClassifier, CODES))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert model.producer_name == "sklearn_fpe"


def test_the_input_is_described():
    (x,) = to_onnx(fitted(FPERegressor, X[:, 0])).graph.input
    dims = x.type.tensor_type.shape.dim
    assert (x.name, dims[0].dim_param, dims[1].dim_value) == ("X", "N", N_FEATURES)
    assert x.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_labels_of_mixed_types_are_an_error():
    clf = fitted(FPEClassifier, CODES)
    clf.learned_.targets.classes = np.array([1, 2.5, "a"], dtype=object)
    with pytest.raises(ValueError, match=r"all of one kind, got \[1, 2.5, 'a'\]"):
        to_onnx(clf)


def test_units_beyond_single_precision_are_an_error():
    reg = fitted(FPERegressor, X[:, 0])
    reg.learned_.targets.affine = Affine(np.zeros(1), np.array([1e60]))
    with pytest.raises(ValueError, match="that float32 can hold"):
        to_onnx(reg)


def test_other_estimators_are_an_error():
    pipeline = make_pipeline(StandardScaler(), fitted(FPEClassifier, CODES))
    with pytest.raises(TypeError, match=r"FPEClassifier, .* got a Pipeline"):
        to_onnx(pipeline)
    with pytest.raises(NotFittedError):
        to_onnx(FPEClassifier())


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"sklearn-fpe\[onnx\]"):
        to_onnx(fitted(FPEClassifier, CODES))
