"""The pretend accelerator keeps CUDA's rules, and counts what it should count."""

import numpy as np
import pretend_device
import pytest
import torch
from pretend_device import MixedDevicesError, counting


@pytest.fixture(autouse=True)
def device(pretend):
    return pretend


def test_values_are_those_of_the_cpu(device):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    there = x.to(device)
    assert there.device == device
    result = torch.addmm(there[0], there, there[:3].mT).relu_().sum(0)
    assert torch.equal(result.cpu(), torch.addmm(x[0], x, x[:3].mT).relu_().sum(0))


def test_gradients_are_those_of_the_cpu(device):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    gradients = []
    for where in ("cpu", device):
        weight = torch.nn.Parameter(x.clone().to(where))
        (weight * weight).exp().sum().backward()
        gradients.append(weight.grad.cpu())
    assert torch.equal(*gradients)


@pytest.mark.parametrize("other", ["cpu", "pretend:1"])
def test_operands_on_two_devices_are_refused(device, other):
    there, elsewhere = torch.ones(3, device=device), torch.ones(3, device=other)
    with pytest.raises(MixedDevicesError):
        there + elsewhere
    assert (there + torch.ones((), device="cpu")).device == device


def test_numpy_needs_a_copy(device):
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(torch.ones(3, device=device))
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(3, device=device).numpy()


def test_launches_are_counted_and_views_are_not(device):
    x = torch.ones(4, 4, device=device)
    with counting() as counts:
        (x[:2] + x.mT[2:]).view(-1).mul_(2)
    assert dict(counts.launches) == {"add": 1, "mul_": 1}
    assert not counts.waits


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
        lambda x: x.index_select(0, torch.ones(2, dtype=torch.int64).to(x.device)),
        lambda x: x[torch.ones(2, dtype=torch.int64)],
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.ones(3).copy_(x, non_blocking=True),
    ],
)
def test_waits_are_counted(device, waits):
    x = torch.ones(3, device=device)
    with counting() as counts:
        waits(x)
    assert counts.n_waits == 1


def test_copies_from_pinned_memory_are_not_waited_for(device):
    from sklearn_fpe._engine import _device

    pinned = _device.empty_pinned((8,), torch.float32).fill_(2)
    with counting() as counts:
        there = pinned[2:5].to(device, non_blocking=True)
        torch.zeros(3, device=device).copy_(pinned[:3], non_blocking=True)
    assert counts.n_waits == 0
    assert sum(counts.uploads.values()) == 24
    assert torch.equal(there.cpu(), torch.full((3,), 2.0))
    with counting() as counts:
        pinned.to(device)
    assert counts.n_waits == 1


def test_lines_of_the_package_are_named(device):
    from sklearn_fpe.nn import MLP

    network = MLP.dense([4, 3, 2], generator=torch.Generator().manual_seed(0))
    with counting() as counts:
        network.to(device).layers[0].to_state()
    assert any(place.startswith("nn/_arrays.py:") for place in counts.downloads)


def test_nothing_is_left_behind():
    before = torch.inference_mode
    with pretend_device.in_use():
        assert torch.inference_mode is not torch.autograd.grad_mode.inference_mode
    assert torch.inference_mode is before


def test_the_device_is_missing_where_it_is_not_in_use(monkeypatch):
    monkeypatch.setattr(pretend_device, "_is_there", 0)
    with pytest.raises(RuntimeError, match="not in use"):
        torch.ones(3, device=pretend_device.NAME)
