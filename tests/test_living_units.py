"""Which units edges join to an input and an output."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_fpe.nn import MLP, expand

pytestmark = pytest.mark.filterwarnings("ignore:The outgoing weights of the children")


@st.composite
def masked_networks(draw):
    """Draw a network of some layers, and masks that leave few edges."""
    widths = [draw(st.integers(2, 6)) for _ in range(draw(st.integers(2, 5)))]
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    network = MLP.dense(widths, "relu", generator)
    if len(widths) > 2 and draw(st.booleans()):
        network, _ = expand(network, 2, "shared", prune="structured", rng=seed)
    share = draw(st.floats(0, 1))
    masks = [
        layer.available()
        & (torch.rand(layer.weight.shape, generator=generator) < share)
        for layer in network.maps
    ]
    return network, masks


def joined(network, masks):
    """Return the living units, by following edges one by one."""
    edges = []
    for layer, mask in zip(network.layers, masks, strict=True):
        ones = torch.ones(layer.in_features, dtype=torch.bool)
        edges.append(
            torch.stack(
                [
                    layer.total_in(
                        mask
                        & layer.between(
                            torch.arange(layer.in_features) == i,
                            torch.ones(layer.out_features, dtype=torch.bool),
                        )
                    )
                    > 0
                    for i in range(len(ones))
                ],
                dim=1,
            )
        )
    down, found = torch.ones(network.layers[0].in_features, dtype=torch.bool), []
    for edge in edges[:-1]:
        down = (edge & down).any(1)
        found.append(down)
    up = torch.ones(network.layers[-1].out_features, dtype=torch.bool)
    for level in reversed(range(len(found))):
        up = (edges[level + 1] & up.unsqueeze(1)).any(0)
        found[level] = found[level] & up
    return found


@given(masked_networks())
def test_living_units_are_joined_to_an_input_and_an_output(drawn):
    network, masks = drawn
    alive = network.alive(masks)
    for found, expected in zip(alive, joined(network, masks), strict=True):
        assert torch.equal(found, expected)
    # No unit that stays loses its last edge when the others go.
    edges = network.edges_between(alive)
    left = [m & e for m, e in zip(masks, edges, strict=False)]
    for found, again in zip(alive, network.alive(left), strict=True):
        assert torch.equal(found, again)


@given(masked_networks(), st.data())
def test_rows_into_outputs_are_those_of_the_dense_weight(drawn, data):
    network, _ = drawn
    for layer in network.layers:
        output = torch.tensor([data.draw(st.integers(0, layer.out_features - 1))])
        rows = layer.rows_into(output)
        weight = layer.weight.detach().flatten(0, -2)
        dense = layer.dense_weight()[output]
        for column in range(weight.shape[1]):
            where = torch.tensor([column])
            value = weight[rows, where]
            if value != 0:
                assert torch.equal(dense[0, layer.inputs_at(rows, where)], value)
