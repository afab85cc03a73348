import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# No test opens a window. Set before anything imports matplotlib.
os.environ.setdefault("MPLBACKEND", "Agg")

# How long an example takes says nothing here: cores are shared with other workers.
settings.register_profile(
    "local",
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


FIRST = ("test_device_paths", "test_pretend_device")
"""Starts of the names of files whose tests run first."""


def pytest_collection_modifyitems(items):
    # autograd sets up its devices at the first backward pass of a process; the pretend
    # one must be there by then.
    items.sort(key=lambda item: not item.path.name.startswith(FIRST))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device on this machine")
        for item in gpu_items:
            item.add_marker(skip)


@pytest.fixture
def at_step(monkeypatch):
    """Make a step of training raise: ``at_step(7, error)``; returns the steps so far.

    Afterwards steps are as they were.
    """

    def install(number, error):
        from sklearn_fpe._engine._net import Net

        steps = []
        real = Net.train_step

        def train_step(self, batch, **kwargs):
            steps.append(1)
            if len(steps) == number:
                monkeypatch.setattr(Net, "train_step", real)
                if error is KeyboardInterrupt:
                    os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
                raise error
            return real(self, batch, **kwargs)

        monkeypatch.setattr(Net, "train_step", train_step)
        return steps

    return install


@pytest.fixture
def pretend():
    """Use the pretend accelerator; returns its device."""
    import pretend_device

    if not pretend_device.is_possible():
        pytest.skip("this version of torch takes no back end in Python")
    with pretend_device.in_use() as device:
        yield device


# Of CLIP embeddings


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Name of the folder of a small random CLIP checkpoint."""
    pytest.importorskip("transformers", reason="the extra 'clip' is not installed")
    from clip_checkpoint import save_clip

    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def pictures():
    """Seven pictures of 20 x 24 pixels, uint8."""
    return np.random.default_rng(0).integers(0, 256, (7, 20, 24, 3), dtype=np.uint8)


@pytest.fixture
def encoded(monkeypatch):
    """Sizes of the batches that go through a CLIP model."""
    from sklearn_fpe.embeddings._checkpoint import ImageEncoder

    sizes = []
    encode = ImageEncoder.encode

    def count(self, pixels):
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(ImageEncoder, "encode", count)
    return sizes
