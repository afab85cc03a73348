"""The experiments: fair loops, exact budgets, a page made of JSON alone."""

import json
import math
import tarfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import _frontier, frontier, make_embeddings
from benchmarks.experiments import (
    NAMES,
    _dealing,
    _grid,
    _page,
    _peers,
    _sparse,
    _tasks,
    _training,
    boolean,
    children,
    peers,
    prediction,
)
from benchmarks.experiments import __main__ as main
from benchmarks.experiments import _claims as claims
from sklearn_fpe._engine._hooks import Hook
from sklearn_fpe._engine._net import Net
from sklearn_fpe.nn import MLP, DenseLinear, MaskedLinear

SETTINGS = {"seed": 0, "epochs": 2, "lr": 1e-2, "batch_size": 64}


@pytest.fixture(scope="module")
def task():
    return _tasks.make_task("digits", n_train=500)


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """A file of embeddings with the keys that ``--data`` needs."""
    rng = np.random.default_rng(0)
    y = np.arange(1200) % 20
    X = rng.normal(size=(20, 24))[y] + rng.normal(size=(1200, 24))
    path = tmp_path_factory.mktemp("data") / "glyphs.npz"
    parts = {"X_train": X[:900], "y_train": y[:900]}
    parts |= {"X_test": X[900:], "y_test": y[900:]}
    np.savez(
        path,
        **{k: v.astype(np.float16 if v.ndim > 1 else int) for k, v in parts.items()},
    )
    return str(path)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _layers(trainer):
    return trainer.network.layers


# The training and the peers


def fit_peer(task, method, n_hidden=8, expansion=4, **settings):
    function, options = peers.METHODS[method]
    return function(task, n_hidden, expansion, **options, **(SETTINGS | settings))


@pytest.mark.parametrize("method", peers.METHODS)
def test_peers_spend_the_budget(task, method):
    network = fit_peer(task, method)
    dense = [layer.dense_weight() for layer in network.maps]
    dense += [layer.dense_bias() for layer in network.layers]
    found = sum(int((values != 0).sum()) for values in dense)
    budget = _peers.budget_of(task, 8)
    assert found <= network.n_nonzero
    if "×" in method:
        per_neuron = task.n_inputs + 1 + task.n_outputs
        factor = peers.METHODS[method][1]["factor"]
        assert abs(network.n_nonzero - factor * budget) <= per_neuron / 2
    elif method in ("DropConnect, wide", "full linear probe"):
        assert network.n_nonzero > budget
    elif method == "FPE, structured":
        assert 0.95 * budget < network.n_nonzero <= budget
    else:
        assert network.n_nonzero == budget
    # Weights of constant inputs may be zero.
    assert found > 0.85 * network.n_nonzero
    assert 0 <= _training.accuracy(network, task.test) <= 100


def test_the_page_describes_the_methods_that_were_measured():
    described = [name for names in peers.DESCRIPTIONS for name in names]
    assert sorted([*described, "dense"]) == sorted(peers.METHODS)
    rows = [
        {"task": "digits", "neurons": 4, "method": method, "lr": 0.1, "seed": 0}
        | {"validation": 1.0, "test": 1.0, "n_nonzero": 310}
        for method in ("FPE, shared split", "SET", "dense", "dense, 2×")
    ]
    text = "\n".join(peers.text({"rows": rows}))
    assert "*FPE, shared split*" in text
    assert "learning rate of 0.1, chosen" in text
    assert not any(word in text for word in ("SET", "2×", "learned", "probe", "decay"))
    assert [claim.title for claim in peers.claims({"rows": rows})] == [
        "As good as a dense net with twice the parameters",
        "As good as sparse training from scratch",
    ]


def test_variants_are_judged_by_claims_of_their_own():
    tests = {"FPE, shared split": 80.0, "FPE, skip connection": 90.0, "dense": 70.0}
    rows = [
        {"task": "digits", "neurons": 4, "method": method, "lr": 0.1, "seed": 0}
        | {"weight_decay": 0.3, "validation": 1.0, "test": test, "n_nonzero": 310}
        for method, test in {**tests, "pruned linear probe": 85.0}.items()
    ]
    found = peers.claims({"rows": rows})
    assert [claim.verdict for claim in found] == [claims.FAILS, claims.HOLDS]
    assert found[1].title.endswith(": skip connection")
    assert "FPE with a skip connection" in found[1].rule


@pytest.mark.parametrize("method", peers.METHODS)
def test_every_method_sees_the_same_batches(task, method, monkeypatch):
    seen, step = [], Net.train_step

    def recorded(net, batch, **fit_params):
        seen[-1].append(batch[1][0].tolist())
        return step(net, batch, **fit_params)

    monkeypatch.setattr(Net, "train_step", recorded)
    for name in (method, "dense"):
        seen.append([])
        fit_peer(task, name)
    assert len(seen[0]) == SETTINGS["epochs"] * -(-500 // SETTINGS["batch_size"])
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[0][len(seen[0]) // 2]


@pytest.mark.parametrize("method", peers.METHODS)
def test_training_is_repeatable_and_leaves_the_global_generators_alone(task, method):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (fit_peer(task, method) for _ in "ab")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


class MasksOverTime(Hook):
    """Record the masks before every step, and what is not zero outside of them."""

    def __init__(self):
        self.masks, self.n_astray = [], 0

    def before_step(self, trainer):
        layers = trainer.network.layers
        self.masks.append([layer.dense_mask().clone() for layer in layers])
        self.n_astray += sum(
            int((layer.weight[~layer.dense_mask()] != 0).sum()) for layer in layers
        )

    @property
    def counts(self):
        return [sum(int(mask.sum()) for mask in masks) for masks in self.masks]


@pytest.mark.parametrize("rule", ["SET", "RigL"])
def test_rewiring_moves_connections_and_keeps_their_number(task, rule):
    dense = MLP.dense([task.n_inputs, 16, 10], generator=_generator(0))
    shapes = [layer.weight.shape for layer in dense.layers]
    masks = _sparse.random_masks(shapes, 300, _generator(1))
    layers = [
        MaskedLinear(layer.weight.data, layer.bias.data, mask)
        for layer, mask in zip(dense.layers, masks, strict=True)
    ]
    seen = MasksOverTime()
    hooks = [_sparse.Rewire(rule, _generator(2)), seen]
    settings = SETTINGS | {"epochs": 4, "batch_size": 32}
    trained = _training.fit_network(task, MLP(layers), hooks=hooks, **settings)
    assert seen.n_astray == 0
    for level, old in enumerate(masks):
        over_time = [masks[level] for masks in seen.masks]
        assert {int(mask.sum()) for mask in over_time} == {int(old.sum())}
        n_changes = sum(not torch.equal(*pair) for pair in pairwise(over_time))
        assert n_changes > 10
        last = trained.layers[level]
        assert torch.equal(last.mask, over_time[-1])
        assert not last.weight[~last.mask].any()


def test_gradual_pruning_falls_to_the_budget_and_never_revives(task):
    seen = MasksOverTime()
    network = _training.new_network(task, 32, seed=0)
    hooks = [_sparse.PruneGradually(400), seen]
    settings = SETTINGS | {"epochs": 12, "batch_size": 32}
    trained = _training.fit_network(task, network, hooks=hooks, **settings)
    n_all = sum(layer.weight.numel() for layer in network.layers)
    n_steps = len(seen.counts)
    assert seen.counts == sorted(seen.counts, reverse=True)
    assert set(seen.counts[: n_steps // 10]) == {n_all}
    assert set(seen.counts[int(0.75 * n_steps) + 1 :]) == {400}
    assert len(set(seen.counts)) > 5
    assert seen.n_astray == 0
    for before, after in pairwise(seen.masks):
        assert not any((b & ~a).any() for a, b in zip(before, after, strict=True))
    assert trained.n_nonzero == 400 + 32 + 10


def test_the_saliency_is_that_of_the_optimizers_running_mean(task):
    found = []

    class Compare(Hook):
        def before_step(self, trainer):
            if trainer.step == 0:
                self.squares = [torch.zeros_like(x.weight) for x in _layers(trainer)]
            for level, layer in enumerate(_layers(trainer)):
                state = trainer.optimizer_state(level)
                assert (state == {}) == (trainer.step == 0)
                if state:
                    torch.testing.assert_close(
                        state["exp_avg_sq"], self.squares[level], rtol=1e-4, atol=1e-12
                    )
                    found.append(level)
                self.squares[level].mul_(0.999).addcmul_(
                    layer.weight.grad, layer.weight.grad, value=0.001
                )

    _training.fit_network(
        task, _training.new_network(task, 8, seed=0), hooks=[Compare()], **SETTINGS
    )
    assert set(found) == {0, 1}


def test_dropconnect_has_the_gradients_of_autograd():
    weight, bias = torch.randn(5, 7), torch.randn(5)
    layer = _sparse.DropConnectLinear(weight, bias, 0.6, [0, 0]).train()
    x = torch.randn(11, 7, requires_grad=True)
    outputs = layer(x)
    kept = layer.factor > 0
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(outputs, x @ (weight * kept / 0.6).T + bias)
    gradient = torch.randn(11, 5)
    expected = torch.autograd.grad(outputs, (layer.weight, layer.bias, x), gradient)
    layer.weight.grad, layer.bias.grad = torch.empty(5, 7), torch.empty(5)
    with torch.no_grad():
        back = layer.backward(x, gradient)
    for a, b in zip(expected, (layer.weight.grad, layer.bias.grad, back), strict=True):
        torch.testing.assert_close(a, b)
    dense = DenseLinear(weight, bias)
    torch.testing.assert_close(layer.eval()(x), dense(x))


@settings(max_examples=10)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.data())
def test_random_masks_have_the_number_asked_for(n_in, n_hidden, n_out, data):
    shapes = [torch.Size([n_hidden, n_in]), torch.Size([n_out, n_hidden])]
    n = data.draw(st.integers(2, sum(math.prod(s) for s in shapes)))
    masks = _sparse.random_masks(shapes, n, _generator(0))
    assert [mask.shape for mask in masks] == shapes
    assert sum(int(mask.sum()) for mask in masks) == n


@pytest.mark.parametrize("dealing", children.DEALINGS)
def test_dealings_have_equal_fan_ins_and_the_same_budget(dealing, task):
    weight = np.random.default_rng(0).normal(size=(3, 12))
    seen = _dealing.deal(weight, 3, dealing, np.random.default_rng(0))
    assert seen.shape == (3, 3, 12)
    assert (seen.sum(axis=2) == 4).all()
    disjoint = (seen.sum(axis=0) == 1).all()
    assert disjoint == (not dealing.startswith("overlapping"))
    shared = (seen == seen[:, :1]).all()
    assert shared == (dealing in ("shared", "feature", "overlapping shared"))
    measured = _dealing.fit_children(task, 6, 3, dealing, warmup=0.5, **SETTINGS)
    assert measured["n_nonzero"] == _peers.budget_of(task, 6)


@pytest.mark.parametrize("dealing", ["shared", "overlapping"])
def test_children_begin_as_copies_of_their_parents(dealing, task):
    seen = {}

    class Watch(Hook):
        def on_phase_end(self, trainer):
            if trainer.phase == "warm-up":
                seen["parent"] = [x.weight.detach().clone() for x in _layers(trainer)]

        def on_phase_begin(self, trainer):
            if trainer.phase == "fine-tune":
                seen["children"] = [x.weight.detach().clone() for x in _layers(trainer)]

    recipe = _training.make_recipe(task, (6,), 3, 0, split="random")
    recipe = replace(recipe, prune=_dealing.KeepAll())
    deal = _dealing.Deal(3, dealing, recipe.budget, np.random.default_rng(0))
    settings = {k: v for k, v in SETTINGS.items() if k != "seed"}
    _training.train(task, recipe, hooks=[deal, Watch()], warmup=0.5, **settings)
    (first, last), (wide, out) = seen["parent"], seen["children"]
    for child, parent in ((wide, first.repeat(3, 1)), (out, last.repeat(1, 3))):
        kept = child != 0
        assert torch.equal(child[kept], parent[kept])
        assert int(kept.sum()) >= parent.numel() // 3 // 3


def test_boolean_tasks_are_signs_and_a_new_formula_per_seed():
    first, second = (
        _tasks.make_task("boolean", seed=s, n_train=100, n_test=50, **boolean.TASK)
        for s in (0, 1)
    )
    assert set(first.train[0].unique().tolist()) == {-1.0, 1.0}
    assert str(first.formula) != str(second.formula)
    assert [len(part[0]) for part in (first.train, first.validation, first.test)] == [
        100,
        50,
        50,
    ]


@pytest.mark.parametrize("name", ["digits", "synthetic", "blobs"])
def test_fixed_tasks_are_standardised_and_apart(name):
    task = _tasks.make_task(name)
    X = task.train[0]
    assert X.mean(0).abs().max() < 1e-4
    rows = [set(map(tuple, part[0].tolist())) for part in (task.train, task.test)]
    assert not rows[0] & rows[1]
    assert task.n_outputs == task.n_classes == len(task.train[1].unique())


# What follows from the measurements


def test_the_rate_is_chosen_on_validation_rows_of_the_first_seed():
    def measure(name, lr, seed, data):
        best = {"a": 0.1, "b": 0.2}[name]
        return {"validation": 80.0 - abs(lr - best), "test": 100 * lr + seed}

    jobs = [{"name": "a"}, {"name": "b"}]
    rows = _grid.run_tuned(measure, jobs, 3, 1, rates=(0.1, 0.2, 0.3))
    assert len(rows) == 2 * (3 + 2)
    best = _grid.tuned(rows, "name")
    for name, lr in [("a", 0.1), ("b", 0.2)]:
        assert {row["lr"] for row in best[name,]} == {lr}
        assert [row["seed"] for row in best[name,]] == [0, 1, 2]
        assert _grid.mean(best[name,]) == pytest.approx(100 * lr + 1)
        assert _grid.spread(best[name,]) == pytest.approx(1)


def test_the_weight_decay_is_chosen_with_the_rate():
    def measure(name, lr, weight_decay, seed, data):
        best = {"a": (0.1, 0.0), "b": (0.2, 0.3)}[name]
        apart = abs(lr - best[0]) + abs(weight_decay - best[1])
        return {"validation": 80.0 - apart, "test": 1.0}

    jobs = [{"name": "a"}, {"name": "b"}]
    decays = {"a": (0.0, 0.1), "b": (0.0, 0.1, 0.3)}
    rows = _grid.run_tuned(
        measure, jobs, 3, 1, rates=(0.1, 0.2), decays=lambda job: decays[job["name"]]
    )
    assert len(rows) == 2 * 2 + 2 * 3 + 2 * 2
    best = _grid.tuned(rows, "name")
    for name, setting in [("a", (0.1, 0.0)), ("b", (0.2, 0.3))]:
        assert {(r["lr"], r["weight_decay"]) for r in best[name,]} == {setting}
        assert [row["seed"] for row in best[name,]] == [0, 1, 2]


def test_verdicts():
    assert claims.of_all([True, True]) == claims.HOLDS
    assert claims.of_all([True, False]) == claims.PARTLY
    assert claims.of_all([False, False]) == claims.FAILS
    assert claims.listed([1, 2, 3]) == "1, 2 and 3"


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((78, 88, 99), claims.HOLDS),
        ((78, 80, 99), claims.PARTLY),
        ((80, 78, 99), claims.FAILS),
    ],
)
def test_boolean_verdict_follows_from_the_gaps(accuracies, expected):
    methods = dict(zip(boolean.PAPER, accuracies, strict=True))
    methods |= {"clause-aware, shared deal": 90.0, "feature": 90.0}
    setting = next(iter(boolean.SETTINGS))
    rows = [
        {"setting": setting, "method": m, "seed": 0, "test": float(v), "n_nonzero": 1}
        for m, v in methods.items()
    ]
    result = {"search": rows, "nearest": setting, "rows": rows}
    (claim,) = boolean.claims(result)
    assert claim.verdict == expected


def test_regression_finds_a_linear_law_and_no_more():
    rng = np.random.default_rng(0)
    rows = np.column_stack([np.arange(20), np.zeros(20), rng.normal(size=(20, 2))])
    rows[:, 1] = 1 + 2 * rows[:, 2] - 3 * rows[:, 3]
    assert prediction.regress(rows)[:2] == pytest.approx((1, 1))
    rows[:, 1] = rng.normal(size=20)
    fitted, left_out, _ = prediction.regress(rows)
    assert left_out < fitted < 0.6


# The command


def test_quick_pieces_make_a_page_of_the_files_alone(tmp_path, glyphs, monkeypatch):
    monkeypatch.setattr(boolean, "QUICK", {"epochs": 1, "n_train": 1000})
    folders = ["--results", str(tmp_path), "--docs", str(tmp_path / "docs")]
    names = [n for n in NAMES if n not in ("timing", "children", "scaling")]
    main.main(["--quick", "--jobs", "1", "--data", glyphs, "--only", *names, *folders])
    page = (tmp_path / "docs" / "results.rst").read_text(encoding="utf-8")
    svg = tmp_path / "docs" / "_static" / "results" / "boolean.svg"
    figure = svg.read_bytes()
    assert svg.with_name("depth.svg").exists()
    assert ": holds" in page or ": does not hold" in page

    main.main(["--page-only", *folders])
    assert (tmp_path / "docs" / "results.rst").read_text(encoding="utf-8") == page
    assert svg.read_bytes() == figure

    path = tmp_path / "boolean.json"
    result = json.loads(path.read_text())
    for row in result["rows"]:
        row["test"] = 12.3
    path.write_text(json.dumps(result))
    main.main(["--page-only", *folders])
    assert "12.3 ± 0.0" in (tmp_path / "docs" / "results.rst").read_text(
        encoding="utf-8"
    )


def test_published_results_give_the_published_page(tmp_path):
    results = _page.load_results(main.ROOT / "benchmarks" / "results" / "experiments")
    page = main.ROOT / "docs" / "results.rst"
    if not page.exists():
        pytest.skip("no results are published yet")
    assert results
    assert not any(result["quick"] for result in results.values())
    made = tmp_path / "results.rst"
    _page.write_page(results, made, tmp_path / "_static" / "results")
    assert made.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_data_must_be_a_file(capsys):
    with pytest.raises(SystemExit):
        main.main(["--data", "nowhere.npz", "--quick"])
    assert "--data must be a file, got 'nowhere.npz'" in capsys.readouterr().err


# Accuracy at equal non-zeros


def test_the_estimators_are_compared_at_equal_non_zeros(tmp_path, monkeypatch):
    monkeypatch.setitem(_frontier.TASKS["digits"], "fit", {"max_iter": 3})
    path = tmp_path / "frontier.json"
    older = {"task": "glyphs", "h": 4, "method": "dense", "accuracy": 1.0}
    path.write_text(json.dumps({"settings": {"quick": True}, "rows": [older]}))
    arguments = ["--quick", "--tasks", "digits", "--jobs", "1", "--json", str(path)]
    frontier.main(arguments)
    *rows, last = json.loads(path.read_text())["rows"]
    assert last == older
    assert [row["method"] for row in rows] == list(_frontier.METHODS)
    counts = {row["method"]: row["n_nonzero"] for row in rows}
    assert counts.pop(_frontier.FULL_PROBE) == 650
    assert counts.pop("dense, 2x parameters") == 610
    assert 0.95 * 310 < counts.pop("structured, contiguous") <= 310
    assert {*counts.values()} == {310}
    for row in rows:
        tries = row["tuning"]
        assert bool(tries) == (row["method"] not in _frontier.NOT_TUNED)
        if tries:
            best = max(tries, key=lambda t: (t["accuracy"], -t["loss"]))
            assert row["weight_decay"] == best["weight_decay"]


def test_the_linear_probe_has_the_budget_or_all_its_weights():
    def budget(*sizes):
        return _frontier.parameters("text", _frontier.PRUNED_PROBE, *sizes)["budget"]

    assert budget(4, 384, 41) == 4 * 385 + 41 * 5
    assert budget(8, 64, 2) == 65


# Public embeddings


WORDNET = {
    "data.noun1": "  1 License text | not a definition\n"
    '00000001 05 n 01 cat 0 000 @ | a feline; small; "the cat sat"  \n',
    "data.noun2": "00000002 05 n 01 dog 0 000 @ | a canine  \n",
    "data.verb": "00000003 38 v 01 go 0 000 | to move  \n"
    "00000004 30 v 01 pass 0 000 | to change  \n"
    "00000005 38 v 01 shift 0 000 | to change  \n",
    "index.noun": "cat n 1 0 1 0 00000001  \n",
}


@pytest.mark.parametrize("packed", [False, True])
def test_definitions_are_read_of_a_folder_or_an_archive(tmp_path, packed):
    folder = tmp_path / "dict"
    folder.mkdir()
    for name, content in WORDNET.items():
        (folder / name).write_text(content)
    path = folder
    if packed:
        path = tmp_path / "source.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, "source/wordnet/dict")
    lines = make_embeddings.read_wordnet(path)
    texts, labels = make_embeddings.definitions(lines)
    names = [make_embeddings.LEXICOGRAPHER_FILES[label] for label in labels]
    expected = {"a feline; small": "noun.animal", "a canine": "noun.animal"}
    assert dict(zip(texts, names, strict=True)) == expected | {"to move": "verb.motion"}


def test_digits_become_embeddings_that_the_experiments_read(tmp_path):
    path = str(tmp_path / "digits.npz")
    make_embeddings.main(["digits", path])
    with np.load(path) as file:
        assert {*file} == {"X_train", "y_train", "X_test", "y_test", "classes"}
        X = file["X_train"].astype(np.float32)
        assert file["classes"].tolist() == [str(i) for i in range(10)]
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, atol=1e-2)
    task = _tasks.make_task("glyphs", data={"glyphs": path})
    assert task.n_classes == 10
    assert task.n_inputs == X.shape[1]
