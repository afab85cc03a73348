"""What a user writes: a type checker must find no error here, see `make lint`."""

import numpy as np
import torch

from sklearn_fpe import FPEClassifier, FPERegressor, FPETransformer
from sklearn_fpe.nn import MLP, Activation, SplitRule, expand, partition

X = np.zeros((20, 4), dtype=np.float32)
y = np.arange(20) % 2


def classify() -> None:
    clf = FPEClassifier((8,), expansion=2, split="shared", random_state=0)
    clf = clf.set_params(max_iter=5)
    clf = clf.fit(X, y, sample_weight=np.ones(20))
    labels = clf.predict(X)
    proba = clf.predict_proba(X)
    print(labels.shape, proba.max(), float(clf.score(X, y)))
    print(len(clf.loss_curve_), clf.loss_, clf.best_loss_, clf.n_iter_)
    print(clf.expansion_, clf.budget_, clf.n_nonzero_, clf.n_layers_, clf.phase_)
    print(clf.classes_, clf.n_features_in_, clf.out_activation_, clf.n_outputs_)
    print([coef.shape for coef in clf.coefs_], clf.intercepts_[0].shape)
    network: MLP = clf.module_
    outputs = network(torch.from_numpy(X))
    print(outputs.shape, network.layers[0].weight.shape, network.n_nonzero)
    clf.partial_fit(X, y, classes=[0, 1])


def regress_and_transform() -> None:
    reg = FPERegressor(hidden_layer_sizes=[8, 4], expansion=(2, 1)).fit(X, y)
    print(reg.predict(X).mean(), reg.module_.n_nonzero, reg.loss_curve_[-1])
    transformer = FPETransformer(task="classification").fit(X, y)
    print(transformer.transform(X).shape, transformer.get_feature_names_out())


def own_rules() -> None:
    def assign(
        weight: np.ndarray, n_children: int, rng: np.random.Generator, groups: object
    ) -> np.ndarray:
        return np.tile(np.arange(weight.shape[1]) % n_children, (len(weight), 1))

    rule = SplitRule("interleaved", assign, shared=True)
    softplus = Activation("softplus", torch.nn.Softplus, torch.nn.functional.softplus)
    clf = FPEClassifier(split=rule, activation=softplus, prune="structured").fit(X, y)
    print(clf.predict(X), partition(np.ones((2, 6)), 2, rule))
    network, expansion = expand(MLP.dense([4, 8, 2]), 2, rule, rng=0)
    print(network.n_nonzero, expansion[0], network.to_sequential()(torch.ones(1, 4)))
