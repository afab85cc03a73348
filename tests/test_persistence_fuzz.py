"""Mutated model files are refused, or they are sound models.

A slice of what ``benchmarks/fuzz.py`` runs; it also tells how to replay a case.
"""

import os
from collections import Counter

import numpy as np
import pytest
from model_files import described_models, header_of, pack, unpack

from benchmarks._fuzz_files import HOSTILE, mutated_file
from benchmarks.fuzz import run_case, warm_up
from sklearn_fpe import ModelFileError, load, save

N_FILES = int(os.environ.get("FPE_FUZZ_FILES", "200"))


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_file_is_refused_or_sound(seed, tmp_path):
    warm_up(tmp_path)
    outcomes = Counter()
    for number in range(N_FILES):
        case = f"file-{seed}-{number}"
        outcome, failure = run_case(case, tmp_path)
        assert failure is None, f"{case}\n{failure}"
        outcomes[outcome.split(": ")[1]] += 1
    # Both happen, or the mutations are none: a changed bias is still a bias.
    assert 0.02 * N_FILES < outcomes["sound"] < 0.6 * N_FILES


def test_a_case_is_the_same_whenever_it_is_run():
    for number in range(20):
        files = [mutated_file(np.random.default_rng([0, 1, number])) for _ in range(2)]
        assert files[0] == files[1]


def test_files_are_put_together_as_the_library_does(tmp_path):
    """Or the checksum would hide everything else."""
    for model, arrays in described_models().values():
        path = tmp_path / "model"
        path.write_bytes(pack(model, arrays))
        save(load(path), tmp_path / "again")
        data = (tmp_path / "again").read_bytes()
        assert data == path.read_bytes()
        assert unpack(data)[0] == model
        assert "__metadata__" in header_of(data)[0]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_parameter_loads_can_be_saved(seed, tmp_path):
    """Each hostile value, for each of a quarter of the parameters and fields."""
    model, arrays = described_models()["names"]
    names = sorted(model["parameters"])[seed::4]
    path, n_loaded = tmp_path / "model", 0
    for name in names:
        for value in HOSTILE:
            parameters = model["parameters"] | {name: value}
            path.write_bytes(pack(model | {"parameters": parameters}, arrays))
            try:
                loaded = load(path)
            except ModelFileError:
                continue
            save(loaded, path)
            assert repr(load(path).get_params()) == repr(loaded.get_params())
            n_loaded += 1
    assert n_loaded
