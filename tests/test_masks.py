"""Masks have one owner, and everything that depends on them follows.

Masks are changed at random between and within the steps of a training; every step is
compared with that of a masked dense network that autograd differentiates.
"""

import itertools
import warnings

import numpy as np
import pytest
import torch
from engine_parts import make_recipe, make_sample, make_settings, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from skorch.callbacks import Callback
from torch.nn import functional as F
from torch.testing import assert_close

from sklearn_fpe._engine._hooks import EarlyStopping, Hook
from sklearn_fpe.nn import DenseLinear
from sklearn_fpe.nn._activation import ACTIVATIONS

seeds = st.integers(0, 2**32 - 1)
N_ROWS = 24


def legal_mask(layer, rng):
    """Draw a mask that the layer can have: by chance, all or nothing of it."""
    share = rng.choice([0.0, 0.5, 0.5, 0.5, 1.0])
    mask = torch.from_numpy(rng.random(layer.weight.shape) < share)
    return mask & layer.available()


def moments_of(trainer, weight):
    """Return the optimizer's running means of a weight, or None before a step."""
    flat, state = trainer.net.flat_, trainer.net.optimizer_.state
    key = weight if flat is None else flat.vector
    if not state.get(key):
        return None
    place = slice(None) if flat is None else flat.places[weight]
    means = (state[key][name].view(-1)[place] for name in ("exp_avg", "exp_avg_sq"))
    return torch.stack([mean.view(weight.shape).clone() for mean in means])


class Masked(torch.nn.Module):
    """The same function as one dense matrix per layer, masked where autograd looks."""

    def __init__(self, network):
        super().__init__()
        layers = network.maps
        self.weights = [w.dense_weight().clone().requires_grad_() for w in layers]
        self.biases = [w.dense_bias().clone().requires_grad_() for w in layers]
        self.masks = [w.dense_mask().clone() for w in layers]
        self.activation = network.activation.module()
        self.n_layers = len(network.layers)

    def forward(self, x):
        maps = list(zip(self.weights, self.biases, self.masks, strict=True))
        y = x
        for level, (weight, bias, mask) in enumerate(maps[: self.n_layers]):
            y = F.linear(self.activation(y) if level else y, weight * mask, bias)
        for weight, _, mask in maps[self.n_layers :]:  # the skip connection
            y = y + F.linear(x, weight * mask)
        return y


def dense_gradient(layer, gradient):
    """Return a gradient of the shape of a layer's weight as (outputs, inputs)."""
    values = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.copy_(gradient)
        dense = layer.dense_weight().clone()
        layer.weight.copy_(values)
    return dense


class ChangeMasks(Hook):
    """Changes masks whenever it is called, and checks what depends on them."""

    def __init__(self, sample, rng):
        self.sample, self.rng = sample, rng
        self.n_steps = self.n_changes = 0

    def on_phase_begin(self, trainer):
        self.check(trainer)
        self.change(trainer)

    def on_epoch_begin(self, trainer):
        self.change(trainer)

    def before_step(self, trainer):
        self.check_gradients(trainer)
        self.n_steps += 1
        self.change(trainer)

    def on_epoch_end(self, trainer):
        self.check(trainer)
        self.change(trainer)

    def on_phase_end(self, trainer):
        self.change(trainer)

    def change(self, trainer):
        network = trainer.network
        levels = [i for i in range(len(network.maps)) if self.rng.random() < 0.4]
        masks = {level: legal_mask(network.maps[level], self.rng) for level in levels}
        before, means = [], []
        for layer in network.maps:
            all_kept = torch.ones_like(layer.weight, dtype=torch.bool)
            before.append(all_kept if layer.mask is None else layer.mask.clone())
            means.append(moments_of(trainer, layer.weight))
        weights = [layer.weight.detach().clone() for layer in network.maps]
        trainer.set_masks(masks)
        self.n_changes += len(masks)
        for level, layer in enumerate(network.maps):
            mask = masks.get(level, before[level])
            assert layer.mask is None or torch.equal(layer.mask, mask)
            assert torch.equal(layer.weight.detach(), weights[level] * mask)
            # The optimizer's means restart where the mask changed, and only there.
            if means[level] is not None:
                expected = means[level] * (before[level] == mask)
                assert torch.equal(moments_of(trainer, layer.weight), expected)
        self.check(trainer)

    def check(self, trainer):
        """Check values, zeros, counts and the vector that trains."""
        network, flat = trainer.network, trainer.net.flat_
        kept = [
            layer.available() if layer.mask is None else layer.mask
            for layer in network.maps
        ]
        for layer, mask in zip(network.maps, kept, strict=True):
            assert (layer.weight[~mask] == 0).all()
            assert int(layer.dense_mask().sum()) == int(mask.sum())
            means = moments_of(trainer, layer.weight)
            if means is not None:
                assert (means[:, ~mask] == 0).all()
        n_biases = sum(layer.out_features for layer in network.layers)
        assert network.n_nonzero == sum(int(m.sum()) for m in kept) + n_biases
        assert trainer.net.module_.n_nonzero == network.n_nonzero
        n_pruned = sum(mask.numel() - int(mask.sum()) for mask in kept)
        if flat is not None:
            assert flat.network is trainer.net.module_
            trained = flat.trainable
            assert n_pruned == (0 if trained is None else int((trained == 0).sum()))
        x = self.rows(trainer)
        expected = Masked(network)(x)
        arranged = x
        if trainer.net.module_ is not network:
            arranged = network.arrange(x)
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded):
                assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
                got = trainer.net.module_(arranged)
                assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def rows(self, trainer):
        return torch.from_numpy(trainer.affine(self.sample.view.X)).float()

    def check_gradients(self, trainer):
        """Compare the step's gradients with those of a masked dense network."""
        network = trainer.network
        naive = Masked(network)
        weights = self.sample.training_weights().astype(np.float32)
        y = trainer.targets.encode(self.sample.y)
        outputs = naive(self.rows(trainer))
        trainer.settings.loss(outputs, y, torch.from_numpy(weights)).backward()
        for layer, weight, bias in zip(
            network.maps, naive.weights, naive.biases, strict=True
        ):
            got = layer.weight.grad
            got = got if layer.mask is None else got * layer.mask
            got = dense_gradient(layer, got)
            assert_close(got, weight.grad, rtol=1e-3, atol=1e-5)
            if layer.bias is None:
                continue
            got = layer.bias.grad.flatten()
            if getattr(layer, "outputs", None) is not None:
                got = got[layer.outputs]
            assert_close(got, bias.grad, rtol=1e-3, atol=1e-5)


class Nothing(Callback):
    """A callback of skorch that does nothing, but brings autograd."""


@st.composite
def trainings(draw):
    n_hidden = draw(st.integers(1, 2))
    widths = [draw(st.integers(2, 9)) for _ in range(n_hidden + 2)]
    prune = draw(st.sampled_from(["magnitude", "structured"]))
    splits = ["shared", "contiguous", "feature"]
    splits += ["random"] if prune == "magnitude" else []
    recipe = make_recipe(
        widths,
        draw(st.integers(1, 3)),
        draw(st.sampled_from(splits)),
        prune,
        draw(st.sampled_from(sorted(ACTIVATIONS))),
        draw(st.integers(0, 999)),
        skip=prune == "magnitude" and draw(st.booleans()),
    )
    callbacks = draw(st.sampled_from([(), (), (Nothing(),)]))
    chosen = make_settings(
        batch_size=N_ROWS,
        n_warmup=draw(st.integers(0, 2)),
        max_iter=4,
        callbacks=callbacks,
        weight_decay=draw(st.sampled_from([0.0, 0.1])),
    )
    return recipe, chosen


@settings(max_examples=40)
@given(trainings(), seeds)
def test_any_sequence_of_masks_trains_as_masked_dense(training, seed):
    recipe, chosen = training
    sample = make_sample(N_ROWS, recipe.shape.widths, seed % 1000)
    hook = ChangeMasks(sample, np.random.default_rng(seed))
    trainer = make_trainer(recipe, chosen, sample)
    learned = trainer.fit(sample, hooks=[hook])
    assert hook.n_steps == chosen.max_iter
    # Units that have no edge left are gone.
    n_nonzero = trainer.network.without_dead_units().n_nonzero
    assert learned.network.n_nonzero == n_nonzero <= trainer.network.n_nonzero
    for layer in learned.network.maps:
        assert (layer.dense_weight()[~layer.dense_mask()] == 0).all()
    # What was learned acts on rows that are not standardised.
    x = torch.from_numpy(sample.view.X)
    expected = Masked(trainer.network)(hook.rows(trainer))
    with torch.no_grad():
        got = learned.network(x)
    assert_close(got, expected.detach(), rtol=1e-3, atol=1e-3)
    # Training goes on from it, masks included.
    again = make_trainer(recipe, chosen, sample, learned)
    for ours, theirs in zip(again.network.maps, learned.network.maps, strict=True):
        assert torch.equal(ours.dense_mask(), theirs.dense_mask())
    again.fit(sample, hooks=[ChangeMasks(sample, np.random.default_rng(seed))])


@given(
    st.lists(st.integers(2, 9), min_size=2, max_size=4),
    st.integers(1, 4),
    st.sampled_from(["learned", "shared", "contiguous", "random"]),
    st.booleans(),
    st.sampled_from(["relu", "gelu"]),
    st.integers(1, 12),
    st.data(),
)
def test_gradual_pruning_meets_the_budget(
    widths, expansion, split, skip, activation, max_iter, data
):
    shape = [widths, expansion, split, "gradual", activation]
    most = make_recipe(*shape, skip=skip)
    n_hidden = len(widths) - 2
    low = 2 * n_hidden + 1 + widths[-1]
    budget = data.draw(st.integers(low, most.shape.n_parameters()))
    recipe = make_recipe(*shape, skip=skip, budget=budget)
    sample = make_sample(N_ROWS, widths)
    chosen = make_settings(max_iter=max_iter, n_warmup=min(1, max_iter), batch_size=3)
    trainer = make_trainer(recipe, chosen, sample)
    network = trainer.fit(sample).network
    assert 0 < network.n_nonzero <= budget
    n_units = sum(recipe.shape.fan_ins()[1:])
    if sum(layer.out_features for layer in network.hidden) == n_units:
        assert network.n_nonzero == budget
    for layer in network.maps:
        assert (layer.dense_weight()[~layer.dense_mask()] == 0).all()
    # No unit is left alone, unless the budget has no weight for it.
    kept = [layer.dense_mask() for layer in network.layers]
    for into, out in itertools.pairwise(kept):
        assert into.any(dim=1).all()
        assert out.any(dim=0).all()


class PruneAtStep(Hook):
    """Prunes everything but one weight of a layer at a step."""

    def __init__(self, level, step):
        self.level, self.step = level, step

    def before_step(self, trainer):
        if trainer.phase == "fine-tune" and trainer.step == self.step:
            layer = trainer.network.layers[self.level]
            kept = torch.zeros_like(layer.weight, dtype=torch.bool)
            kept.view(-1)[int(layer.available().flatten().int().argmax())] = True
            trainer.set_masks({self.level: kept})


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("level", [0, 1])
def test_weights_pruned_within_a_step_stay_zero(level, activation):
    recipe = make_recipe([8, 6, 3], 2, "shared", activation=activation)
    sample = make_sample(N_ROWS, [8, 6, 3])
    trainer = make_trainer(recipe, make_settings(batch_size=4), sample)
    trainer.fit(sample, hooks=[PruneAtStep(level, 7)])
    weight = trainer.network.layers[level].weight
    assert int((weight != 0).sum()) <= 1


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_weight_that_is_kept_anew_learns_from_zero(activation):
    class Revive(Hook):
        def on_epoch_begin(self, trainer):
            if trainer.epoch == 4:
                layer = trainer.network.layers[0]
                self.born = layer.available() & ~layer.mask
                trainer.set_masks({0: layer.available()})
                assert (layer.weight[self.born] == 0).all()

    recipe = make_recipe([8, 6, 3], 2, "random", activation=activation)
    sample = make_sample(N_ROWS, [8, 6, 3])
    trainer = make_trainer(recipe, make_settings(batch_size=4), sample)
    hook = Revive()
    trainer.fit(sample, hooks=[hook])
    assert hook.born.any()
    assert (trainer.network.layers[0].weight[hook.born] != 0).float().mean() > 0.8


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_best_weights_come_back_with_their_masks(activation):
    """Early stopping restores weights from before a dense layer got its mask."""
    widths = [8, 6, 3]
    recipe = make_recipe(widths, 2, "shared", "structured", activation=activation)
    sample, held = make_sample(N_ROWS, widths), make_sample(9, widths, 1)
    trainer = make_trainer(recipe, make_settings(), sample)
    scores = iter([1.0, 0.0, 0.0, 0.0])
    n_nonzero = []

    class Prune(Hook):
        def on_epoch_end(self, trainer):
            if trainer.phase == "fine-tune":
                n_nonzero.append(trainer.network.n_nonzero)
                masks = {
                    level: layer.available() & (layer.weight > 0)
                    for level, layer in enumerate(trainer.network.layers)
                }
                trainer.set_masks(masks)

    stopping = EarlyStopping(lambda trainer, outputs: next(scores), np.inf, 0.0)
    learned = trainer.fit(sample, held, hooks=[stopping, Prune()])
    assert n_nonzero[0] > n_nonzero[1]
    assert learned.network.n_nonzero == n_nonzero[0] <= recipe.budget
    assert trainer.net.module_.n_nonzero == n_nonzero[0]
    assert learned.history.best_iter == 3
    flat = trainer.net.flat_
    if flat is not None and flat.trainable is not None:
        pruned = [m for m in (w.mask for w in trainer.network.layers) if m is not None]
        n_pruned = sum(int((~mask).sum()) for mask in pruned)
        assert int((flat.trainable == 0).sum()) == n_pruned


def test_an_illegal_mask_changes_nothing():
    recipe = make_recipe([8, 6, 3], 2, "random")
    sample = make_sample(N_ROWS, [8, 6, 3])
    trainer = make_trainer(recipe, make_settings(), sample)
    trainer.fit(sample)
    network = trainer.network
    states = {name: v.clone() for name, v in network.state_dict().items()}
    legal = torch.zeros_like(network.layers[0].weight, dtype=torch.bool)
    for illegal in (torch.zeros(1, 1, dtype=torch.bool), network.layers[1].weight):
        with pytest.raises(ValueError, match="mask must be a bool tensor of shape"):
            trainer.set_masks({0: legal, 1: illegal})
        after = network.state_dict()
        assert after.keys() == states.keys()
        assert all(torch.equal(after[name], states[name]) for name in states)


def test_a_mask_in_the_warm_up_makes_a_dense_layer_maskable():
    seen = []

    class Prune(Hook):
        def on_epoch_end(self, trainer):
            seen.append((trainer.phase, type(trainer.network.layers[0])))
            if trainer.phase == "warm-up":
                layer = trainer.network.layers[0]
                trainer.set_masks({0: torch.rand(layer.weight.shape) < 0.5})

    recipe = make_recipe([8, 6, 3], 2, "shared")
    sample = make_sample(N_ROWS, [8, 6, 3])
    trainer = make_trainer(recipe, make_settings(n_warmup=3), sample)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned = trainer.fit(sample, hooks=[Prune()])
    assert seen[0] == ("warm-up", DenseLinear)
    assert learned.network.n_nonzero == recipe.budget
