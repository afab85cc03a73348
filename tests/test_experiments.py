"""The experiments: fair loops, exact budgets, a page made of JSON alone."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.experiments import (
    NAMES,
    _grid,
    _loop,
    _page,
    _peers,
    _stack,
    _tasks,
    boolean,
    children,
    peers,
    prediction,
)
from benchmarks.experiments import __main__ as main
from benchmarks.experiments import _claims as claims
from benchmarks.experiments._dealing import copy_under, deal
from sklearn_fpe.nn import MLP

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


# The loop and the peers


@pytest.mark.parametrize("method", peers.METHODS)
def test_peers_count_what_is_not_zero(task, method):
    function, options = peers.METHODS[method]
    network, n_nonzero = function(task, 8, 4, **options, **SETTINGS)
    found = sum(int((p != 0).sum()) for p in network.parameters())
    budget = _peers.budget_of(task, 8)
    assert found <= n_nonzero
    if "×" in method:
        per_neuron = task.n_inputs + 1 + task.n_outputs
        factor = options["factor"]
        assert abs(n_nonzero - factor * budget) <= per_neuron / 2
    elif method == "DropConnect, wide":
        assert n_nonzero > budget
    else:
        assert n_nonzero == budget
    assert found > 0.9 * n_nonzero
    assert 0 <= _loop.accuracy(network, task.test) <= 100


def test_every_method_sees_the_same_batches(task):
    seen = {}
    for method in ["FPE, shared split", "dense", "SET", "train wide, then prune"]:
        batches = []
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, args, batches=batches: (
                batches.append(args[0][0, :8].tolist())
                if isinstance(module, MLP) and module.training
                else None
            )
        )
        function, options = peers.METHODS[method]
        function(task, 4, 2, **options, **SETTINGS)
        handle.remove()
        seen[method] = batches
    first, *others = seen.values()
    assert len(first) == SETTINGS["epochs"] * (500 // SETTINGS["batch_size"])
    assert all(batches == first for batches in others)


def test_the_loop_is_repeatable_and_leaves_the_global_generators_alone(task):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    nets = [_peers.static_mask(task, 4, 2, rewire="RigL", **SETTINGS)[0] for _ in "ab"]
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("rule", ["SET", "RigL"])
def test_rewiring_moves_connections_and_keeps_their_number(task, rule):
    network = MLP.dense([task.n_inputs, 16, 10], generator=_loop.generator(0))
    masks = _peers.random_masks(
        [layer.weight.shape for layer in network.layers], 300, _loop.generator(1)
    )
    before = [mask.clone() for mask in masks]
    hook = _peers.Rewire(network, masks, rule, _loop.generator(2))
    _loop.train(network, task, range(4), 4, lr=1e-2, seed=0, batch_size=32, hook=hook)
    for layer, mask, old in zip(network.layers, masks, before, strict=True):
        assert mask.sum() == old.sum()
        assert not torch.equal(mask, old)
        assert not layer.weight[~mask].any()


def test_a_stack_learns_what_single_networks_learn():
    ways = [(1, "random"), (2, "random"), (2, "groups"), (3, "shared"), (2, "feature")]
    seeds = [0, 1, 0, 1, 0]
    tasks = [
        _tasks.make_task("boolean", seed=s, n_train=300, n_test=50, **boolean.TASK)
        for s in seeds
    ]
    fit = boolean.FIT | {"epochs": 4}
    stacked = _stack.fit_stack(tasks, 8, ways, seeds, **fit)
    for network, task, way, seed in zip(stacked, tasks, ways, seeds, strict=True):
        alone = _loop.fit_fpe(task, (8,), *way[:1], split=way[1], seed=seed, **fit)
        assert network.n_nonzero == alone.n_nonzero == _peers.budget_of(task, 8)
        for a, b in zip(network.layers, alone.layers, strict=True):
            torch.testing.assert_close(a.dense_weight(), b.dense_weight())
            torch.testing.assert_close(a.unit_bias(), b.unit_bias())
            assert torch.equal(a.kept(), b.kept())
            assert not a.dense_weight()[~a.kept()].any()


@settings(max_examples=10)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.data())
def test_random_masks_have_the_number_asked_for(n_in, n_hidden, n_out, data):
    shapes = [torch.Size([n_hidden, n_in]), torch.Size([n_out, n_hidden])]
    n = data.draw(st.integers(2, sum(math.prod(s) for s in shapes)))
    masks = _peers.random_masks(shapes, n, _loop.generator(0))
    assert [mask.shape for mask in masks] == shapes
    assert sum(int(mask.sum()) for mask in masks) == n


@pytest.mark.parametrize("dealing", children.DEALINGS)
def test_dealings_have_equal_fan_ins_and_the_same_budget(dealing):
    parent = MLP.dense([12, 3, 4], generator=_loop.generator(0))
    weight = parent.layers[0].weight.detach().numpy()
    seen = deal(weight, 3, dealing, np.random.default_rng(0))
    assert seen.shape == (3, 3, 12)
    assert (seen.sum(axis=2) == 4).all()
    disjoint = (seen.sum(axis=0) == 1).all()
    assert disjoint == (not dealing.startswith("overlapping"))
    shared = (seen == seen[:, :1]).all()
    assert shared == (dealing in ("shared", "feature", "overlapping shared"))
    budget = 12 * 3 + 3 + 3 * 4 + 4
    network, hook = copy_under(parent, torch.from_numpy(seen), budget)
    assert hook.n_nonzero(network) == budget
    assert not (hook.masks[0].numpy() & ~seen.reshape(9, 12)).any()


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
    assert "**holds" in page or "**does not hold" in page

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
