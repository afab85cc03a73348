"""The calls of CUDA that no machine without a GPU can run, by their order and names."""

import contextlib
import inspect

import pytest
import torch

from sklearn_fpe._engine._device import CudaCopies
from sklearn_fpe._engine._graph import CudaCapture

DEVICE = torch.device("cuda:1")


class Stream:
    """A stream that notes what waits for what."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def wait_stream(self, other):
        self.calls.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.calls.append(f"{self.name} waits for an event")


@pytest.fixture
def calls(monkeypatch):
    """Replace torch's functions for CUDA by ones that note their calls."""
    calls = []

    class Event:
        def record(self, stream):
            calls.append(f"event on {stream.name}")

        def synchronize(self):
            calls.append("host waits for the event")

    class Graph:
        def replay(self):
            calls.append("replay")

    @contextlib.contextmanager
    def use(stream):
        calls.append(f"use {stream.name}")
        yield
        calls.append(f"leave {stream.name}")

    signature = inspect.signature(torch.cuda.graph.__init__)

    @contextlib.contextmanager
    def graph(*args, **kwargs):
        bound = signature.bind(None, *args, **kwargs).arguments
        assert isinstance(bound["cuda_graph"], Graph)
        calls.append(f"record on {bound['stream'].name}, {bound['capture_error_mode']}")
        yield
        calls.append("recorded")

    fakes = {
        "Stream": lambda device: Stream(calls, "own"),
        "current_stream": lambda device: Stream(calls, "current"),
        "stream": use,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "device": contextlib.nullcontext,
    }
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, fake)
    return calls


def test_a_graph_is_recorded_on_a_stream_of_its_own(calls):
    capture = CudaCapture(DEVICE)
    with capture.warm_up():
        calls.append("compute")
    capture.record(lambda: calls.append("launch"))
    capture.replay()
    assert calls == [
        *("own waits for current", "use own", "compute", "leave own"),
        *("current waits for own", "record on own, thread_local", "launch"),
        *("recorded", "replay"),
    ]


def test_a_copy_is_made_beside_what_computes(calls, monkeypatch):
    class Pinned:
        def to(self, device, non_blocking):
            assert non_blocking
            assert device == DEVICE
            calls.append("copy")
            return self

        def record_stream(self, stream):
            calls.append(f"memory in use by {stream.name}")

    there, wait = CudaCopies(DEVICE).copy(Pinned())
    assert isinstance(there, Pinned)
    assert calls == [
        *("use own", "copy", "event on own", "leave own"),
        *("current waits for an event", "memory in use by current"),
    ]
    wait()
    assert calls[-1] == "host waits for the event"


def test_torch_has_what_is_called():
    for function, names in {
        torch.cuda.mem_get_info: ["device"],
        torch.cuda.memory_reserved: ["device"],
        torch.cuda.memory_allocated: ["device"],
        torch.cuda.current_stream: ["device"],
    }.items():
        assert list(inspect.signature(function).parameters) == names
    # What a graph reads: a rate that is a tensor.
    schema = torch.ops.aten._fused_adamw_.tensor_lr._schema
    assert any(a.name == "lr" and str(a.type) == "Tensor" for a in schema.arguments)
