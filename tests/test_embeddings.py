"""CLIP embeddings, on a small random CLIP model that is built here."""

import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import warnings
import weakref
from contextlib import closing
from importlib.metadata import PackageNotFoundError

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from clip_checkpoint import TEXT, TOKENS, TOWER, VISION, save_clip
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks, get_tags

from sklearn_fpe import FPEClassifier, _optional
from sklearn_fpe.embeddings import CLIPEmbedder, _images, load_image_folder
from sklearn_fpe.embeddings._checkpoint import Checkpoint, ImageEncoder

transformers = pytest.importorskip(
    "transformers", reason="the extra 'clip' is not installed: transformers is missing"
)
Image = pytest.importorskip(
    "PIL.Image", reason="the extra 'clip' is not installed: Pillow is missing"
)


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    for label, low in {"dark": 0, "light": 128}.items():
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(low, low + 128, (18, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{i}.png")
    return tmp_path / "pictures"


# The estimator


def test_import_brings_neither_transformers_nor_pillow():
    code = (
        "import sys, sklearn_fpe.embeddings\n"
        "print({'transformers', 'huggingface_hub', 'PIL'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "set()\n", result.stderr


@pytest.mark.parametrize("missing", ["transformers", "PIL"])
def test_missing_extra_is_named(missing, model, pictures, monkeypatch):
    for name in [missing, "PIL.Image", "transformers.utils.logging"]:
        if name.startswith(missing):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {missing}.*sklearn-fpe\[clip\]"):
        CLIPEmbedder(model).transform(list(pictures))


def test_missing_extra_is_named_with_a_cache_too(
    model, pictures, monkeypatch, tmp_path
):
    monkeypatch.setattr(_optional.metadata, "version", raise_not_found)
    with pytest.raises(ImportError, match=r"needs transformers.*sklearn-fpe\[clip\]"):
        CLIPEmbedder(model, memory=tmp_path).transform(pictures)


def raise_not_found(package):
    raise PackageNotFoundError(package)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_param_validation,
        estimator_checks.check_estimator_repr,
    ],
)
def test_common_checks_that_need_no_table(check):
    # The others want a two-dimensional X, and are skipped by that tag.
    check("CLIPEmbedder", CLIPEmbedder())


def test_tags():
    tags = get_tags(CLIPEmbedder())
    assert not tags.requires_fit
    assert not tags.non_deterministic
    assert not tags.input_tags.two_d_array
    assert tags.input_tags.string
    assert tags.input_tags.one_d_array


def test_nothing_is_looked_for_before_an_image_is_embedded(pictures):
    embedder = clone(CLIPEmbedder("/nowhere", memory="/nowhere/either"))
    assert pickle.loads(pickle.dumps(embedder)).get_params()["model"] == "/nowhere"
    assert embedder.fit(pictures) is embedder
    assert set(vars(embedder)) == set(embedder.get_params())


def test_embeddings_are_those_of_transformers(model, folder):
    paths = load_image_folder(folder).paths
    reference = transformers.CLIPModel.from_pretrained(model).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
    images = [Image.open(path) for path in paths]
    with torch.inference_mode():
        inputs = processor(images=images, return_tensors="pt")
        expected = reference.get_image_features(**inputs).pooler_output.numpy()
    raw = CLIPEmbedder(model, normalize=False).transform(paths)
    np.testing.assert_allclose(raw, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(raw, axis=0).min() > 1e-3  # the images are told apart
    unit = CLIPEmbedder(model).transform(paths)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected / lengths, rtol=1e-5, atol=1e-6)


def test_batches_change_nothing(model, pictures):
    expected = CLIPEmbedder(model, batch_size=7).transform(pictures)
    for batch_size in [1, 3, 100]:
        embedder = CLIPEmbedder(model, batch_size=batch_size)
        np.testing.assert_allclose(embedder.transform(pictures), expected, atol=1e-5)
    np.testing.assert_array_equal(embedder.fit_transform(pictures), expected)


def test_loading_is_silent_and_leaves_global_generators_alone(model, pictures, capfd):
    states = pickle.dumps(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    CLIPEmbedder(model).transform(pictures)
    assert pickle.dumps(np.random.get_state()) == states[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    assert transformers.utils.logging.set_tqdm_hook(None) is None  # ours is gone
    assert capfd.readouterr() == ("", "")


def test_pickles_and_clones_leave_the_model_behind(model, pictures):
    embedder = CLIPEmbedder(model)
    size = len(pickle.dumps(embedder))
    expected = embedder.transform(pictures)
    assert len(pickle.dumps(embedder)) == size
    assert set(vars(clone(embedder))) == set(embedder.get_params())
    restored = pickle.loads(pickle.dumps(embedder))
    np.testing.assert_array_equal(restored.transform(pictures), expected)


def test_model_is_loaded_once_and_freed_with_the_estimator(
    model, pictures, monkeypatch
):
    loaded = []
    load = Checkpoint.load

    def watch(self, dtype, device):
        assert all(earlier() is None for earlier in loaded)  # never two at a time
        encoder = load(self, dtype, device)
        loaded.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(Checkpoint, "load", watch)
    embedder = CLIPEmbedder(model)
    embedder.transform(pictures)
    embedder.transform(pictures[:2])
    assert len(loaded) == 1
    embedder.set_params(dtype="bfloat16").transform(pictures)
    assert loaded[0]() is None
    assert loaded[1]() is not None
    del embedder
    assert loaded[1]() is None


def test_changed_folder_is_loaded_again(tmp_path, pictures):
    embedder = CLIPEmbedder(save_clip(tmp_path), memory=tmp_path / "memory")
    first = embedder.transform(pictures)
    save_clip(tmp_path, seed=1)
    second = embedder.transform(pictures)
    assert not np.allclose(first, second, atol=1e-2)
    fresh = CLIPEmbedder(tmp_path).transform(pictures)
    np.testing.assert_array_equal(second, fresh)
    assert embedder._encoder[1].processor.backend == "pil"  # torchvision or not


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_lower_precision_is_close(dtype, model, pictures):
    expected = CLIPEmbedder(model).transform(pictures)
    embeddings = CLIPEmbedder(model, dtype=dtype).transform(pictures)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=0.05)
    assert np.array_equal(embeddings, expected) == (dtype == "auto")


def test_overflow_is_an_error(tmp_path, pictures):
    save_clip(tmp_path)
    large = transformers.CLIPModel.from_pretrained(tmp_path)
    with torch.no_grad():
        large.visual_projection.weight *= 1e7
    large.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite in torch.float16.*bfloat16"):
        CLIPEmbedder(tmp_path, dtype="float16").transform(pictures)


def test_exhausted_memory_is_explained(model, pictures, monkeypatch):
    def encode(self, pixels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ImageEncoder, "encode", encode)
    with pytest.raises(MemoryError, match=r"device='auto' ran out .*batch_size .*64"):
        CLIPEmbedder(model).transform(pictures)


@pytest.mark.gpu
def test_cuda_agrees_with_cpu(model, pictures):
    expected = CLIPEmbedder(model, device="cpu").transform(pictures)
    embedder = CLIPEmbedder(model)
    np.testing.assert_allclose(embedder.transform(pictures), expected, atol=5e-3)
    parameter = next(embedder._encoder[1].model.parameters())
    assert parameter.device.type == "cuda"
    half = CLIPEmbedder(model, dtype="float16").transform(pictures)
    np.testing.assert_allclose(half, expected, atol=0.05)


def test_feature_names_and_data_frames(model, pictures):
    embedder = CLIPEmbedder(model)
    names = [f"clipembedder{i}" for i in range(6)]
    assert embedder.get_feature_names_out().tolist() == names  # before any fit
    frame = embedder.set_output(transform="pandas").fit_transform(
        pd.Series(list(pictures), index=range(10, 17))
    )
    assert frame.columns.tolist() == names
    assert frame.index.tolist() == list(range(10, 17))


def test_siglip(tmp_path, pictures):
    config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT | TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        siglip = transformers.SiglipModel(config).eval()
    siglip.save_pretrained(tmp_path)
    processor = transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    embedder = CLIPEmbedder(tmp_path, normalize=False)
    inputs = processor(images=[Image.fromarray(p) for p in pictures])
    with torch.inference_mode():
        pixels = torch.as_tensor(np.stack(inputs["pixel_values"]))
        expected = siglip.get_image_features(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(embedder.transform(pictures), expected, atol=1e-5)
    assert len(embedder.get_feature_names_out()) == 16


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_size": 0}, "'batch_size' parameter .* Got 0 instead"),
        ({"on_error": "skip"}, "'on_error' parameter .* Got 'skip' instead"),
        ({"device": "gpu"}, "device must be 'auto' or a device that is there"),
        ({"revision": "main"}, "revision must be None where model is a folder"),
    ],
)
def test_parameters_out_of_range(parameters, message, model, pictures):
    embedder = CLIPEmbedder(model, **parameters)
    for method in (embedder.transform, embedder.fit_transform):
        with pytest.raises(ValueError, match=message):
            method(pictures)


# Images


def test_all_forms_of_the_same_images_agree(model, pictures, tmp_path):
    images = [Image.fromarray(pixels) for pixels in pictures]
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    names = [str(path) for path in paths]
    expected = CLIPEmbedder(model).transform(pictures)
    forms = [
        *(images, paths, names, tuple(names), list(pictures)),
        *(np.array(names), np.array(names, dtype=object)[:, None]),
        *(pd.Series(names), pd.DataFrame({"path": names}), pl.Series(names)),
        *(pd.Series(images), [*images[:2], *paths[2:5], *pictures[5:]]),
    ]
    for X in forms:
        np.testing.assert_array_equal(CLIPEmbedder(model).fit(X).transform(X), expected)


def rgb(image):
    """Pixels that reach the preprocessing."""
    return np.asarray(_images.decode(_images.read_source(image, "X[0]"), "X[0]"))


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(4))),
)
def test_channels_become_rgb(pixels):
    colour, grey, alpha = pixels[..., :3], pixels[..., 0], pixels[..., 3:] / 255
    np.testing.assert_array_equal(rgb(colour), colour)
    grey_rgb = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(rgb(grey), grey_rgb)
    np.testing.assert_array_equal(rgb(grey[..., None]), grey_rgb)
    on_white = alpha * colour + (1 - alpha) * 255
    assert np.abs(rgb(pixels) - on_white).max() <= 1
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(rgb(wide), grey_rgb)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_is_read(mode, tmp_path):
    image = Image.new("RGB", (6, 4), (200, 30, 30)).convert(mode)
    assert rgb(image).shape == (4, 6, 3)
    assert rgb(image).dtype == np.uint8
    if mode in {"L", "LA", "P", "RGBA"}:
        image.save(tmp_path / "image.png")
        np.testing.assert_array_equal(rgb(tmp_path / "image.png"), rgb(image))


def test_transparent_palette_colour_is_laid_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "image.gif", transparency=0)
    assert (rgb(tmp_path / "image.gif") == 255).all()


def test_exif_orientation_is_obeyed(pictures, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    Image.fromarray(pictures[0]).save(tmp_path / "image.png", exif=exif)
    turned = np.rot90(pictures[0], k=-1)
    np.testing.assert_array_equal(rgb(tmp_path / "image.png"), turned)
    with Image.open(tmp_path / "image.png") as image:
        np.testing.assert_array_equal(rgb(image), turned)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ("a.png", TypeError, "X must be a sequence of images, got a single str"),
        ([], ValueError, "X must hold at least one image"),
        (5, ValueError, "X must be a sequence of paths"),
        ([None], TypeError, r"X\[0\] must be a path, .* got NoneType"),
        (["a.png", 3.5], TypeError, r"X\[1\] must be a path, .* got float"),
        (np.zeros((2, 5)), ValueError, r"got float64 of shape \(2, 5\)"),
        (np.zeros((2, 5, 5, 3)), ValueError, "got float64 of shape"),
        (np.zeros((9, 9, 3), np.uint8), ValueError, r"one colour image: pass X\[None"),
        (np.zeros((2, 3, 9, 9), np.uint8), ValueError, r"of shape \(2, 3, 9, 9\)"),
        ([np.zeros((9, 9, 3))], ValueError, r"X\[0\] must be a uint8 .* got float64"),
        ([np.zeros((3, 9, 9), np.uint8)], ValueError, r"of shape \(3, 9, 9\)"),
        ([np.zeros((0, 9), np.uint8)], ValueError, r"of shape \(0, 9\)"),
        ([Image.new("F", (2, 2))], OSError, r"X\[0\].* mode 'F' have no fixed range"),
    ],
)
def test_what_is_no_image_is_named(X, error, message, model):
    with pytest.raises(error, match=message):
        CLIPEmbedder(model).fit(X).transform(X)


@pytest.fixture
def damaged(folder):
    """Paths of the folder, with four that cannot be read among them."""
    paths = load_image_folder(folder).paths.tolist()
    whole = (folder / "dark" / "0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    bad = [str(folder / name) for name in ("half.png", "text.jpg", "empty.png", "gone")]
    return [*paths[:3], *bad[:2], *paths[3:], *bad[2:]], bad


@pytest.mark.parametrize("which", range(4))
def test_unreadable_image_is_named(which, damaged, model):
    path = damaged[1][which]
    with pytest.raises(OSError, match=r"X\[1\] \(.*cannot be read as an image") as info:
        CLIPEmbedder(model).transform([damaged[0][0], path])
    assert repr(path) in str(info.value)
    assert info.value.__cause__ is not None


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_become_nan_on_request(
    batch_size, cached, damaged, model, tmp_path
):
    paths, bad = damaged
    good = [path for path in paths if path not in bad]
    memory = tmp_path / "memory" if cached else None
    embedder = CLIPEmbedder(model, on_error="nan", batch_size=batch_size, memory=memory)
    with pytest.warns(UserWarning, match="4 images could not be read") as record:
        embeddings = embedder.transform(paths)
    assert len(record) == 1
    assert all(repr(path) in str(record[0].message) for path in bad)
    is_bad = np.isin(paths, bad)
    assert np.isnan(embeddings[is_bad]).all()
    expected = CLIPEmbedder(model).transform(good)
    np.testing.assert_allclose(embeddings[~is_bad], expected, atol=1e-5)
    with pytest.warns(UserWarning, match="2 images"):
        assert embedder.transform(bad[:2]).shape == (2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder.transform(good)


# The cache


def test_kept_embeddings_are_returned_to_the_bit(
    model, pictures, encoded, tmp_path, monkeypatch
):
    memory = tmp_path / "memory"
    embedder = CLIPEmbedder(model, memory=memory, batch_size=3)
    first = embedder.transform(pictures)
    np.testing.assert_allclose(
        first, CLIPEmbedder(model).transform(pictures), atol=1e-5
    )
    encoded.clear()
    monkeypatch.delattr(Checkpoint, "load")  # not even the model is needed
    order = np.random.default_rng(0).permutation(7)
    for X, expected in [
        (pictures, first),
        (pictures[order], first[order]),
        (pictures[4:5], first[4:5]),
        ([Image.fromarray(p) for p in pictures], first),
    ]:
        other = clone(embedder).set_params(batch_size=5)
        np.testing.assert_array_equal(other.transform(X), expected)
    raw = clone(embedder).set_params(normalize=False).transform(pictures)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, first, rtol=1e-6)
    assert encoded == []


def test_overlapping_subsets_embed_each_image_once(model, pictures, encoded, tmp_path):
    embedder = CLIPEmbedder(model, memory=str(tmp_path))
    embedder.transform(pictures[:4])
    embedder.transform(pictures[2:])
    embedder.transform(pictures[[0, 6, 6, 0]])
    assert encoded == [4, 3]
    new = np.repeat(pictures[:1] // 2, 3, axis=0)  # equal images in one batch
    embeddings = embedder.transform(new)
    assert encoded == [4, 3, 1]
    np.testing.assert_array_equal(embeddings, embeddings[[0, 0, 0]])


def test_content_is_the_key_not_the_name(model, folder, encoded, tmp_path):
    embedder = CLIPEmbedder(model, memory=tmp_path / "memory")
    path, copy, other = (
        folder / "dark/0.png",
        folder / "copy.png",
        folder / "dark/1.png",
    )
    first = embedder.transform([path])
    shutil.copy(path, copy)
    np.testing.assert_array_equal(embedder.transform([copy]), first)
    assert encoded == [1]
    shutil.copy(other, copy)
    assert not np.array_equal(embedder.transform([copy]), first)
    assert encoded == [1, 1]


def test_model_and_dtype_are_part_of_the_key(model, pictures, encoded, tmp_path):
    memory = tmp_path / "memory"
    CLIPEmbedder(model, memory=memory).transform(pictures)
    CLIPEmbedder(model, memory=memory, dtype="bfloat16").transform(pictures)
    other = save_clip(tmp_path / "other", seed=1)
    CLIPEmbedder(other, memory=memory).transform(pictures)
    assert encoded == [7, 7, 7]
    moved = shutil.copytree(model, tmp_path / "moved")
    CLIPEmbedder(moved, memory=memory).transform(pictures)
    assert encoded == [7, 7, 7]  # the same files elsewhere are the same model
    processor = moved / "preprocessor_config.json"
    text = processor.read_text()
    assert '"resample": 3' in text
    processor.write_text(text.replace('"resample": 3', '"resample": 2'))
    CLIPEmbedder(moved, memory=memory).transform(pictures)
    assert encoded == [7, 7, 7, 7]


def test_memory_objects_work_and_print_nothing(model, pictures, tmp_path, capfd):
    expected = CLIPEmbedder(model).transform(pictures)
    kept = joblib.Memory(tmp_path, mmap_mode="r")  # its default is to print
    for memory in [kept, kept, joblib.Memory(None)]:
        embedder = CLIPEmbedder(model, memory=memory)
        np.testing.assert_array_equal(embedder.transform(pictures), expected)
    assert capfd.readouterr() == ("", "")
    kept.clear(warn=False)
    np.testing.assert_array_equal(embedder.transform(pictures), expected)


def test_lost_entry_is_computed_again(model, pictures, encoded, tmp_path):
    embedder = CLIPEmbedder(model, memory=tmp_path)
    first = embedder.transform(pictures)
    keys = kept_embeddings(tmp_path)
    assert len(keys) == 7
    with closing(sqlite3.connect(tmp_path / "embeddings.sqlite")) as database, database:
        database.execute("DELETE FROM entries WHERE key = ?", keys[3])
    np.testing.assert_allclose(embedder.transform(pictures), first, atol=1e-5)
    assert encoded == [7, 1]


def kept_embeddings(folder):
    """Keys of the embeddings of 6 columns in a cache."""
    with closing(sqlite3.connect(folder / "embeddings.sqlite")) as database:
        query = "SELECT key FROM entries WHERE length(value) = 24"
        return database.execute(query).fetchall()


# Pipelines


def test_grid_search_over_a_folder(model, folder, tmp_path):
    images = load_image_folder(folder)
    pipeline = make_pipeline(
        CLIPEmbedder(model, memory=tmp_path / "memory", device="cpu"),
        StandardScaler(),
        FPEClassifier(8, max_iter=40, device="cpu", random_state=0),
    )
    grid = {
        "fpeclassifier__expansion": [1, 2],
        "fpeclassifier__split": ["shared", "feature"],
    }
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2, error_score="raise")
    search.fit(images.paths, images.labels)
    assert search.score(images.paths, images.labels) > 0.9
    assert search.classes_.tolist() == ["dark", "light"]
    # One entry an image, whatever the folds.
    assert len(kept_embeddings(tmp_path / "memory")) == 12
    restored = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(
        restored.predict(images.paths), search.predict(images.paths)
    )


def test_serial_search_embeds_each_image_once(model, folder, encoded, tmp_path):
    images = load_image_folder(folder)
    embedder = CLIPEmbedder(model, memory=tmp_path / "memory")
    pipeline = make_pipeline(embedder, LogisticRegression())
    grid = {"logisticregression__C": [0.1, 1.0, 10.0]}
    GridSearchCV(pipeline, grid, cv=3).fit(images.paths, images.labels)
    assert sum(encoded) == 12


class Recorder:
    """Callback that notes the tasks; propagated into pipelines."""

    max_propagation_depth = None

    def __init__(self):
        self.begun, self.ended = [], []
        self.running = 0

    def setup(self, estimator, context):
        self.running += 1

    def teardown(self, estimator, context):
        self.running -= 1

    def on_fit_task_begin(self, estimator, context, *, X=None):
        self.begun.append((context.task_name, context.max_subtasks, len(X)))

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.ended.append((context.task_name, fitted_estimator))


def test_batches_are_reported_to_callbacks(model, pictures):
    recorder = Recorder()
    embedder = CLIPEmbedder(model, batch_size=3).set_callbacks(recorder)
    expected = embedder.transform(pictures)
    assert recorder.begun == []  # callbacks are hooks of fit
    np.testing.assert_allclose(embedder.fit_transform(pictures), expected, atol=1e-5)
    batches = [("batch", 0, 3), ("batch", 0, 3), ("batch", 0, 1)]
    assert recorder.begun == [("fit", 3, 7), *batches]
    assert [name for name, _ in recorder.ended] == ["batch", "batch", "batch", "fit"]
    np.testing.assert_array_equal(recorder.ended[-1][1].transform(pictures), expected)
    embedder.fit(pictures)
    assert recorder.begun[4:] == [("fit", 0, 7)]
    assert recorder.running == 0


def test_pipeline_hands_its_callbacks_down(model, pictures):
    recorder = Recorder()
    pipeline = make_pipeline(CLIPEmbedder(model, batch_size=3), StandardScaler())
    pipeline.set_callbacks(recorder).fit(pictures)
    assert [name for name, *_ in recorder.begun].count("batch") == 3
    n_begun = len(recorder.begun)
    pipeline.transform(pictures)
    assert len(recorder.begun) == n_begun


# Checkpoints


def test_missing_folder_fails_without_asking_the_hub(pictures, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.delattr(huggingface_hub.HfApi, "resolve_revision")
    (tmp_path / "file").touch()
    for name in [tmp_path / "gone", str(tmp_path / "file"), "./gone", "~/gone/at/all"]:
        with pytest.raises(FileNotFoundError, match=r"model='.*' is not a folder"):
            CLIPEmbedder(name).transform(pictures)


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("HF_HUB_OFFLINE", True),
        ("ENDPOINT", "http://127.0.0.1:9"),  # nobody listens there
    ],
)
def test_unreachable_hub_is_an_error_at_once(
    constant, value, pictures, tmp_path, monkeypatch, capfd
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, constant, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"model='some/clip' is neither a local") as info:
        CLIPEmbedder("some/clip").transform(pictures)
    assert "pass the folder of a downloaded checkpoint" in str(info.value)
    # The hub's client retries downloads for half a minute, and says so.
    assert "Retrying" not in capfd.readouterr().err


def test_name_that_cannot_be_on_the_hub(pictures):
    with pytest.raises(OSError, match=r"model='a/b/c' is neither .* Repo id must be"):
        CLIPEmbedder("a/b/c").transform(pictures)


def test_downloaded_model_is_found_by_name(model, pictures, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789" * 4
    repository = tmp_path / "models--someone--some-clip"
    shutil.copytree(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    memory = tmp_path / "memory"
    embedder = CLIPEmbedder("someone/some-clip", local_files_only=True, memory=memory)
    expected = CLIPEmbedder(model).transform(pictures)
    np.testing.assert_array_equal(embedder.transform(pictures), expected)
    assert embedder.get_feature_names_out().shape == (6,)
    embedder.set_params(revision=commit)
    np.testing.assert_array_equal(embedder.transform(pictures), expected)
    embedder.set_params(revision="no-such-branch")
    with pytest.raises(OSError, match="no-such-branch"):
        embedder.transform(pictures)


def test_folder_without_a_checkpoint(tmp_path, pictures):
    with pytest.raises(OSError, match=r"model='.*' could not be loaded: .*config.json"):
        CLIPEmbedder(tmp_path).transform(pictures)


def test_other_models_are_refused(tmp_path, pictures):
    transformers.ViTConfig(**TOWER).save_pretrained(tmp_path)
    for use in [
        lambda embedder: embedder.transform(pictures),
        lambda embedder: embedder.get_feature_names_out(),
    ]:
        with pytest.raises(ValueError, match=r"type clip or siglip, got type 'vit'"):
            use(CLIPEmbedder(tmp_path))


def test_missing_weights_are_never_made_up(tmp_path, pictures, capfd):
    save_clip(tmp_path)
    vision = transformers.CLIPModel.from_pretrained(tmp_path)
    weights = vision.state_dict()
    del weights["visual_projection.weight"], weights["logit_scale"]  # not needed
    vision.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(OSError, match=r"lacks 1 weights .*'visual_projection.weight'"):
        CLIPEmbedder(tmp_path).transform(pictures)


def test_damaged_weights_are_an_error(tmp_path, pictures):
    weights = tmp_path / "model.safetensors"
    save_clip(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"model='.*' could not be loaded"):
        CLIPEmbedder(tmp_path).transform(pictures)


# Folders of images


def test_folder_is_listed_in_order(folder):
    (folder / "dark" / "deep").mkdir()
    shutil.copy(folder / "dark" / "0.png", folder / "dark" / "deep" / "9.JPG")
    for extra in ["notes.txt", ".DS_Store", "light/notes.txt", "light/.0.png"]:
        (folder / extra).touch()
    (folder / ".git").mkdir()
    (folder / "light" / ".thumbs").mkdir()
    (folder / "light" / ".thumbs" / "0.png").touch()
    images = load_image_folder(folder)
    names = [os.path.relpath(path, folder) for path in images.paths]
    dark = [*(f"dark/{i}.png" for i in range(6)), "dark/deep/9.JPG"]
    assert names == [*dark, *(f"light/{i}.png" for i in range(6))]
    assert images.labels.tolist() == ["dark"] * 7 + ["light"] * 6
    assert images.classes.tolist() == ["dark", "light"]
    assert images.skipped.tolist() == [str(folder / "light" / "notes.txt")]
    only = load_image_folder(str(folder / ""), extensions=[".JPG", ".png"])
    assert only.paths.tolist() == images.paths.tolist()


@given(names=st.sets(st.text("abXY01", min_size=1, max_size=3), min_size=1, max_size=6))
def test_order_is_that_of_the_names(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    (folder / "only").mkdir()
    for name in names:
        (folder / "only" / f"{name}.png").touch()
    paths = load_image_folder(folder).paths
    expected = [str(folder / "only" / f"{name}.png") for name in names]
    assert paths.tolist() == sorted(expected)


def test_unreadable_files_of_a_folder(folder):
    (folder / "dark" / "3.png").write_bytes(b"no image")
    assert len(load_image_folder(folder).paths) == 12  # nothing is opened
    with pytest.raises(OSError, match=r"3\.png' cannot be read as an image"):
        load_image_folder(folder, unreadable="raise")
    with pytest.warns(UserWarning, match=r"1 files .* left out: .*3\.png"):
        images = load_image_folder(folder, unreadable="skip")
    assert images.skipped.tolist() == [str(folder / "dark" / "3.png")]
    assert len(images.paths) == len(images.labels) == 11
    assert images.skipped[0] not in images.paths
    for i in range(6):
        (folder / "dark" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"dark' holds none: .*cannot be read"):
        load_image_folder(folder, unreadable="skip")


def test_folders_that_hold_no_classes(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be a folder, got .*gone"):
        load_image_folder(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"lie in a folder per class.*6 lie in .*'0\."):
        load_image_folder(folder / "dark")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"path must hold a folder per class"):
        load_image_folder(tmp_path / "empty")
    (folder / "medium").mkdir()
    with pytest.raises(ValueError, match=r"medium' holds none"):
        load_image_folder(folder)


@pytest.mark.parametrize("extensions", [".png", ["png"], [], [3]])
def test_extensions_out_of_range(extensions, folder):
    with pytest.raises(ValueError, match="extensions must be a sequence of endings"):
        load_image_folder(folder, extensions=extensions)


def test_unreadable_out_of_range(folder):
    with pytest.raises(ValueError, match="unreadable must be 'keep', 'raise' or"):
        load_image_folder(folder, unreadable="ignore")
