"""An update is a step of torch's AdamW."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_fpe._engine._step import VectorAdamW


def trained(do, device, seed, lr, weight_decay):
    """Update a vector with random gradients and falling learning rates."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.nn.Parameter(torch.randn(50, generator=generator).to(device))
    optimizer = VectorAdamW([vector], lr=lr, weight_decay=weight_decay, fused=True)
    for i in range(5):
        optimizer.param_groups[0]["lr"] = lr / (1 + i)
        vector.grad = torch.randn(50, generator=generator).to(device)
        do(optimizer)
    return vector.detach()


@given(
    st.integers(0, 2**31), st.floats(1e-6, 10), st.sampled_from([0.0, 1e-4, 0.1, 1.0])
)
def test_an_update_is_a_step(seed, lr, weight_decay):
    settings = ("cpu", seed, lr, weight_decay)
    expected = trained(VectorAdamW.step, *settings)
    assert torch.equal(trained(VectorAdamW.update, *settings), expected)


def test_steps_and_updates_can_follow_one_another():
    def in_turn(optimizer):
        steps = optimizer.state[optimizer.param_groups[0]["params"][0]]
        (optimizer.step if steps and steps["step"] % 2 else optimizer.update)()

    settings = ("cpu", 0, 0.1, 0.01)
    assert torch.equal(
        trained(in_turn, *settings), trained(VectorAdamW.step, *settings)
    )


@pytest.mark.gpu
def test_an_update_on_the_gpu():
    settings = ("cuda", 0, 0.1, 0.01)
    expected = trained(VectorAdamW.step, *settings)
    assert torch.equal(trained(VectorAdamW.update, *settings), expected)
