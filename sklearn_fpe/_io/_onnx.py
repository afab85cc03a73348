"""Export to ONNX: the fitted network as the blocks and matrices it runs."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_fpe._estimators._classifier import FPEClassifier
from sklearn_fpe._estimators._regressor import FPERegressor
from sklearn_fpe._estimators._transformer import FPETransformer
from sklearn_fpe._optional import import_optional
from sklearn_fpe._version import __version__
from sklearn_fpe.nn import BlockLinear
from sklearn_fpe.nn._arrays import to_numpy

OPSET = 17
"""Version of ONNX's default operators in an exported model."""

IR_VERSION = 8
"""Version of ONNX's file format, the oldest that knows :data:`OPSET`."""


def to_onnx(estimator):
    r"""Export a fitted estimator as an ONNX model.

    The model computes what the estimator computes, layer by layer: for a layer of
    dense blocks ``y_a = x[:, inputs[a]] W_a' + b_a`` one batched product over the
    blocks ``a``, after a gather of columns where the blocks are not runs of
    neighbours; for a masked layer one product with the matrix that is zero where it was
    pruned. It uses the default operators of opset 17 only and computes in float32.

    Parameters
    ----------
    estimator : FPEClassifier, FPERegressor or FPETransformer
        A fitted estimator.

    Returns
    -------
    model : onnx.ModelProto
        A model with the input ``X``, float32 of shape (N, n_features), for any N of 1
        or more. Its outputs are

        - of a classifier: ``label``, what ``predict`` returns, int64, string, bool or
          float as the labels are (of a multi-label problem int64 of shape
          (N, n_labels)), and ``probabilities``, what ``predict_proba`` returns;
        - of a regressor: ``y``, what ``predict`` returns, in the units of the targets;
        - of a transformer: ``activations``, what ``transform`` returns.

        ``onnx.save(model, path)`` writes it.

    Raises
    ------
    TypeError
        If `estimator` is of another class.
    sklearn.exceptions.NotFittedError
        If `estimator` is not fitted.
    ValueError
        If ONNX has no type for the class labels, or float32 cannot hold the units of
        the targets.
    ImportError
        If onnx is not installed.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_fpe import FPEClassifier, to_onnx
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FPEClassifier((8,), expansion=2, max_iter=5, random_state=0).fit(X, y)
    >>> [output.name for output in to_onnx(clf).graph.output]
    ['label', 'probabilities']
    """
    exporters = {
        FPEClassifier: _add_classifier,
        FPERegressor: _add_regressor,
        FPETransformer: _add_transformer,
    }
    export = next((exporters[k] for k in exporters if isinstance(estimator, k)), None)
    if export is None:
        names = ", ".join(kind.__name__ for kind in exporters)
        raise TypeError(
            f"estimator must be one of {names}, got a {type(estimator).__name__}."
        )
    check_is_fitted(estimator)
    graph = _Graph()
    export(graph, estimator)
    return graph.model(type(estimator).__name__, estimator.n_features_in_)


class _Graph:
    """A graph in the making."""

    def __init__(self):
        self.onnx = import_optional("onnx")
        self.nodes, self.constants, self.outputs = [], [], []

    def constant(self, name, array):
        """Add an array under a name of its own; return the name."""
        name = f"{name}_{len(self.constants)}"
        array = np.ascontiguousarray(array)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def scalar(self, name, value):
        """Add a number of float32; return the name."""
        return self.constant(name, np.float32(value))

    def add(self, op, *inputs, output=None, **attributes):
        """Add an operation; return the name of what it computes."""
        output = output or f"{op.lower()}_{len(self.nodes)}"
        node = self.onnx.helper.make_node(op, list(inputs), [output], **attributes)
        self.nodes.append(node)
        return output

    def result(self, op, *inputs, output, array, **attributes):
        """Add an operation whose value is an output of the model, like `array`."""
        self.add(op, *inputs, output=output, **attributes)
        kind = self.onnx.numpy_helper.from_array(array).data_type
        shape = ["N", *array.shape[1:]]
        value = self.onnx.helper.make_tensor_value_info(output, kind, shape)
        self.outputs.append(value)

    def model(self, name, n_features):
        """Return the model."""
        helper = self.onnx.helper
        x = helper.make_tensor_value_info(
            "X", self.onnx.TensorProto.FLOAT, ["N", n_features]
        )
        return helper.make_model(
            helper.make_graph(self.nodes, name, [x], self.outputs, self.constants),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="sklearn_fpe",
            producer_version=__version__,
        )


# --------------------------------------------------------------------------------------
# Outputs
# --------------------------------------------------------------------------------------


def _add_classifier(graph, estimator):
    targets = estimator.learned_.targets
    logits = _add_networks(graph, estimator)
    n_classes = len(targets.classes)
    proba = np.empty((0, n_classes), np.float32)
    if targets.kind == "multiclass":
        chosen = graph.add("ArgMax", logits, axis=1, keepdims=0)
        graph.result("Softmax", logits, output="probabilities", array=proba, axis=1)
    else:
        chosen = graph.add("Greater", logits, graph.scalar("zero", 0))
        if targets.kind == "binary":
            logits = graph.add("Concat", graph.add("Neg", logits), logits, axis=1)
        graph.result("Sigmoid", logits, output="probabilities", array=proba)
    int64 = graph.onnx.TensorProto.INT64
    if targets.kind == "multilabel":
        label = np.empty((0, n_classes), np.int64)
        graph.result("Cast", chosen, output="label", array=label, to=int64)
    else:
        if targets.kind == "binary":
            row = graph.constant("axis", np.array([1]))
            chosen = graph.add("Squeeze", graph.add("Cast", chosen, to=int64), row)
        labels = _labels(targets.classes)
        inputs = graph.constant("classes", labels), chosen
        graph.result("Gather", *inputs, output="label", array=labels[:0], axis=0)
    graph.outputs.reverse()


def _add_regressor(graph, estimator):
    targets = estimator.learned_.targets
    y = _add_networks(graph, estimator)
    with np.errstate(over="ignore"):
        affine = targets.output_affine()
        scale, shift = affine.scale.astype(np.float32), affine.mean.astype(np.float32)
    if not (np.isfinite(shift) & np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(
            "The targets must have a mean and a standard deviation that float32 can "
            f"hold, got {affine.mean} and {affine.scale}."
        )
    y = graph.add("Mul", y, graph.constant("scale", scale))
    shift = graph.constant("mean", shift)
    if targets.one_dimensional:
        y = graph.add("Add", y, shift)
        axis = graph.constant("axis", np.array([1]))
        graph.result("Squeeze", y, axis, output="y", array=np.empty(0, np.float32))
    else:
        like = np.empty((0, targets.n_columns), np.float32)
        graph.result("Add", y, shift, output="y", array=like)


def _add_transformer(graph, estimator):
    n_units = estimator.module_.layers[-1].in_features
    like = np.empty((0, n_units), np.float32)
    _, x = _add_hidden(graph, estimator.module_)
    graph.result("Identity", x, output="activations", array=like)


def _labels(classes):
    """Return class labels in a type that ONNX has."""
    kinds = {int: np.int64, str: object, bool: bool, float: float}
    kind, *others = {type(label) for label in classes.tolist()}
    fits = kind in kinds and not others
    if fits and (kind is not int or np.abs(classes.astype(float)).max() < 2**63):
        return classes.astype(kinds[kind])
    raise ValueError(
        f"Class labels must be integers, floats, bools or texts to be exported, all of "
        f"one kind, got {classes.tolist()[:5]}."
    )


# --------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------


def _add_networks(graph, estimator):
    """Add the networks; return the outputs whose link is the mean prediction."""
    learned = estimator.learned_
    outputs = [_add_network(graph, member.network) for member in learned.members]
    if len(outputs) == 1:
        return outputs[0]
    link = learned.targets.link
    if link == "identity":
        return graph.add("Mean", *outputs)
    if link == "softmax":
        mean = graph.add("Mean", *(graph.add("Softmax", y, axis=1) for y in outputs))
        return graph.add("Log", mean)
    logarithms = []
    for sign in (outputs, [graph.add("Neg", y) for y in outputs]):
        mean = graph.add("Mean", *(graph.add("Sigmoid", y) for y in sign))
        logarithms.append(graph.add("Log", mean))
    return graph.add("Sub", *logarithms)


def _add_hidden(graph, network):
    """Add the hidden layers; return the names of their input and of the last one."""
    activation = network.activation
    if network.hidden and activation.onnx is None:
        raise ValueError(
            f"The activation {activation.name!r} cannot be exported: its `onnx` is "
            f"None."
        )
    x = "X"
    if network.input_mean is not None:
        double, single = graph.onnx.TensorProto.DOUBLE, graph.onnx.TensorProto.FLOAT
        mean, scale = network.input_mean, network.input_scale
        x = graph.add("Cast", x, to=double)
        x = graph.add("Sub", x, graph.constant("mean", to_numpy(mean)))
        x = graph.add("Div", x, graph.constant("scale", to_numpy(scale)))
        x = graph.add("Cast", x, to=single)
    hidden = x
    for layer in network.hidden:
        hidden = activation.onnx(graph, _add_layer(graph, hidden, layer))
    return x, hidden


def _add_network(graph, network):
    """Add all layers and the skip connection; return the name of the outputs."""
    x, hidden = _add_hidden(graph, network)
    outputs = _add_layer(graph, hidden, network.layers[-1])
    if network.skip is None:
        return outputs
    return graph.add("Add", outputs, _add_product(graph, x, network.skip))


def _add_layer(graph, x, layer):
    if isinstance(layer, BlockLinear):
        return _add_blocks(graph, x, layer)
    bias = graph.constant("bias", to_numpy(layer.bias))
    return graph.add("Add", _add_product(graph, x, layer), bias)


def _add_product(graph, x, layer):
    return graph.add("MatMul", x, graph.constant("weight", to_numpy(layer.weight).T))


def _add_blocks(graph, x, layer):
    n_blocks, block_outputs, block_inputs = layer.weight.shape
    if layer.reorders_columns:
        columns = graph.constant("columns", to_numpy(layer.inputs.flatten()))
        x = graph.add("Gather", x, columns, axis=1)
    # In the shapes, 0 stands for the number of rows.
    shape = graph.constant("shape", np.array([0, n_blocks, block_inputs]))
    x = graph.add("Transpose", graph.add("Reshape", x, shape), perm=[1, 0, 2])
    x = graph.add("MatMul", x, graph.constant("blocks", to_numpy(layer.weight.mT)))
    x = graph.add("Add", x, graph.constant("bias", to_numpy(layer.bias)[:, None]))
    x = graph.add("Transpose", x, perm=[1, 0, 2])
    shape = graph.constant("shape", np.array([0, n_blocks * block_outputs]))
    x = graph.add("Reshape", x, shape)
    if layer.outputs is None:
        return x
    outputs = graph.constant("outputs", to_numpy(layer.outputs))
    return graph.add("Gather", x, outputs, axis=1)
