"""Images are prepared in threads, one batch ahead: same bits, nothing hangs."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from sklearn_fpe.embeddings import CLIPEmbedder
from sklearn_fpe.embeddings._checkpoint import Checkpoint, ImageEncoder

pytest.importorskip(
    "transformers", reason="the extra 'clip' is not installed: transformers is missing"
)
Image = pytest.importorskip(
    "PIL.Image", reason="the extra 'clip' is not installed: Pillow is missing"
)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (20, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def threads_end():
    """No thread of ours outlives a test, however the call ended."""
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("images")]


class Watched:
    """Sequence that notes what is read, and by how many threads at a time."""

    def __init__(self, pictures, fail_at=None, error=None):
        self.pictures = pictures
        self.fail_at, self.error = fail_at, error
        self.read, self.inside, self.most_inside = [], 0, 0

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.002)
        self.read.append(i)
        self.inside -= 1
        if i == self.fail_at:
            raise self.error
        return Image.fromarray(self.pictures[i])


def set_threads(monkeypatch, n_threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("cached", [False, True])
def test_threads_change_no_bit(cached, model, pictures, monkeypatch, tmp_path):
    order = np.random.default_rng(0).integers(0, 12, 20)  # many are equal
    results = []
    for n_threads in [1, 2, 8]:
        set_threads(monkeypatch, n_threads)
        memory = tmp_path / str(n_threads) if cached else None
        embedder = CLIPEmbedder(model, batch_size=3, memory=memory)
        results.append(embedder.transform(pictures[order]))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_next_batch_is_prepared_while_the_model_computes(model, pictures, monkeypatch):
    X = Watched(pictures)
    encode = ImageEncoder.encode
    read = []

    def wait_for_the_next_batch(self, pixels):
        n_next = min(len(X), 4 * (len(read) + 2))
        wait_until(lambda: len(X.read) == n_next)
        time.sleep(0.02)
        read.append(len(X.read))
        return encode(self, pixels)

    monkeypatch.setattr(ImageEncoder, "encode", wait_for_the_next_batch)
    set_threads(monkeypatch, 2)
    embeddings = CLIPEmbedder(model, batch_size=4).transform(X)
    assert read == [8, 12, 16, 20, 20]  # one batch ahead, and no more
    assert X.most_inside == 1  # a sequence need not be safe to share
    monkeypatch.undo()
    expected = CLIPEmbedder(model, batch_size=4).transform(pictures)
    np.testing.assert_array_equal(embeddings, expected)


@pytest.mark.parametrize("n_threads", [1, 8])
@pytest.mark.parametrize("fail_at", [0, 5, 19])
def test_unreadable_item_stops_the_threads(
    fail_at, n_threads, model, pictures, monkeypatch
):
    set_threads(monkeypatch, n_threads)
    X = Watched(pictures, fail_at, RuntimeError("no such shard"))
    with pytest.raises(OSError, match=rf"^X\[{fail_at}\] cannot .*no such shard"):
        CLIPEmbedder(model, batch_size=4).transform(X)
    assert max(X.read) < fail_at + 8


def test_first_of_several_unreadable_images_is_named(model, pictures, monkeypatch):
    set_threads(monkeypatch, 8)
    X = [Image.fromarray(p) for p in pictures]
    X[2] = X[3] = X[7] = "/nowhere.png"
    for _ in range(5):
        with pytest.raises(OSError, match=r"^X\[2\] \('/nowhere\.png'\)"):
            CLIPEmbedder(model, batch_size=8).transform(X)
    X[1] = Watched(pictures)
    with pytest.raises(TypeError, match=r"^X\[1\] must be a path"):
        CLIPEmbedder(model, batch_size=8).transform(X)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_interrupt_in_a_sequence_is_passed_on(
    error, n_threads, model, pictures, monkeypatch
):
    set_threads(monkeypatch, n_threads)
    embedder = CLIPEmbedder(model, batch_size=4, on_error="nan")
    with pytest.raises(error):
        embedder.transform(Watched(pictures, 6, error()))
    assert np.isfinite(embedder.transform(Watched(pictures))).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no model")])
@pytest.mark.parametrize("method", ["encode", "preprocess"])
def test_error_of_the_model_stops_the_threads(
    method, error, model, pictures, monkeypatch, tmp_path
):
    def fail(self, pixels):
        raise error

    monkeypatch.setattr(ImageEncoder, method, fail)
    X = Watched(pictures)
    embedder = CLIPEmbedder(model, batch_size=4, memory=tmp_path)
    with pytest.raises(type(error)):
        embedder.transform(X)
    assert len(X.read) <= 8
    monkeypatch.undo()
    assert np.isfinite(embedder.transform(X)).all()


def test_model_is_loaded_by_the_callers_thread(model, pictures, monkeypatch, tmp_path):
    # An interrupt reaches that thread alone, and a model may have to be downloaded.
    threads = []
    load = Checkpoint.load

    def watch(self, *args):
        threads.append(threading.current_thread())
        return load(self, *args)

    monkeypatch.setattr(Checkpoint, "load", watch)
    CLIPEmbedder(model, memory=tmp_path).transform(pictures)
    assert threads == [threading.main_thread()]


def test_image_that_occurs_often_is_read_by_one_thread(model, pictures, monkeypatch):
    set_threads(monkeypatch, 8)
    image = Image.fromarray(pictures[0])
    load, inside, most = image.load, [], []

    def watch():
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.005)
        inside.pop()
        return load()

    image.load = watch
    embeddings = CLIPEmbedder(model).transform([image] * 8)
    assert set(most) == {1}
    assert np.ptp(embeddings, axis=0).max() < 1e-6


def test_exhausted_memory_names_the_image(model, pictures):
    X = Watched(pictures, 3, MemoryError())
    with pytest.raises(MemoryError, match=r"^X\[3\] .*memory"):
        CLIPEmbedder(model, on_error="nan").transform(X)


INTERRUPTED = """
import sys, threading, time
from sklearn_fpe.embeddings import CLIPEmbedder

class Slow:
    def __len__(self):
        return 10_000
    def __getitem__(self, i):
        time.sleep(0.02)
        if i == 10:
            print("reading", flush=True)
        return Image.new("RGB", (20, 20))

from PIL import Image
try:
    CLIPEmbedder(sys.argv[1]).transform(Slow())
except KeyboardInterrupt:
    print("interrupted", threading.active_count())
"""


def test_interrupt_ends_the_process(model):
    command = [sys.executable, "-c", INTERRUPTED, model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "interrupted 1\n"
    assert process.returncode == 0
