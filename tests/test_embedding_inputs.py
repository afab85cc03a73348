"""Images in every form a user may hold them: equal pixels, equal embeddings."""

import operator
import os
import socket
import stat
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_fpe.embeddings import CLIPEmbedder, _images

Image = pytest.importorskip(
    "PIL.Image", reason="the extra 'clip' is not installed: Pillow is missing"
)


def lazy(path):
    """Image that is not decoded yet, and holds no file open."""
    return Image.open(BytesIO(Path(path).read_bytes()))


class Column:
    """Lazy sequence, like a column of a Hugging Face data set.

    It has neither slices nor negative indices, and it counts what is read.
    """

    def __init__(self, paths):
        self.paths = paths
        self.read = []

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(i)
        self.read.append(i)
        return lazy(self.paths[i])


def save_forms(folder):
    """Save one picture in every mode, size and orientation that is easily lost."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 24, 4), dtype=np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb.quantize(16)
    wide = Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0])
    wide_clear = int(np.asarray(wide)[0, 0])
    images = {
        "rgb.png": (rgb, {}),
        "tall.png": (rgb.resize((10, 40)), {}),
        "turned.jpg": (rgb, {"exif": exif}),
        "grey.png": (rgb.convert("L"), {}),
        "grey_clear.png": (rgb.convert("L"), {"transparency": 40}),
        "bits.png": (rgb.convert("1"), {}),
        "bits_clear.png": (rgb.convert("1"), {"transparency": 0}),
        "grey_alpha.png": (Image.fromarray(pixels).convert("LA"), {}),
        "alpha.png": (Image.fromarray(pixels), {}),
        "palette.gif": (palette, {}),
        "palette.png": (palette, {}),
        "palette_clear.gif": (palette, {"transparency": 3}),
        "palette_clear.png": (palette, {"transparency": bytes(range(16))}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "ycbcr.tif": (rgb.convert("YCbCr"), {}),
        "wide.png": (wide, {}),
        "wide_clear.png": (wide, {"transparency": wide_clear}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [str(folder / name) for name in images]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "forms").mkdir()
    return save_forms(tmp_path / "forms")


class Slots(Sequence):
    """Sequence by the book, of loaded images."""

    def __init__(self, paths):
        self.images = [lazy(path) for path in paths]
        for image in self.images:
            image.load()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def as_objects(paths):
    array = np.empty(len(paths), dtype=object)
    array[:] = list(Slots(paths))
    return array


FORMS = {
    "column": Column,
    "sequence": Slots,
    "list": lambda paths: [lazy(path) for path in paths],
    "tuple": lambda paths: tuple(Slots(paths)),
    "series": lambda paths: pd.Series(
        as_objects(paths), index=range(5, 5 + len(paths))
    ),
    "objects": as_objects,
    "paths": np.array,
    "path objects": lambda paths: np.array([Path(path) for path in paths]),
    "index": pd.Index,
    "categories": pd.Categorical,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [4, 64])
def test_every_form_has_the_bits_of_the_files(form, batch_size, files, model):
    embedder = CLIPEmbedder(model, batch_size=batch_size)
    X = FORMS[form](files)
    embeddings = embedder.fit_transform(X)
    np.testing.assert_array_equal(embeddings, embedder.transform(files))
    np.testing.assert_array_equal(embedder.fit(X).transform(X), embeddings)


def test_sequence_is_read_item_by_item(files, model, tmp_path):
    X = Column(files)
    embedder = CLIPEmbedder(model, batch_size=4).fit(X)
    assert X.read == []  # checking opens nothing
    embedder.transform(X)
    assert sorted(X.read) == list(range(len(files)))  # each once


def test_sequence_through_a_search(files, model, tmp_path):
    X, y = Column(files), np.arange(len(files)) % 2
    embedder = CLIPEmbedder(model, memory=tmp_path / "memory")
    pipeline = make_pipeline(embedder, LogisticRegression())
    grid = {"logisticregression__C": [0.1, 1.0]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    expected = GridSearchCV(
        make_pipeline(CLIPEmbedder(model), LogisticRegression()), grid, cv=2
    ).fit(files, y)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"]
    )
    np.testing.assert_allclose(
        search.predict_proba(X), expected.predict_proba(files), rtol=1e-4
    )


def test_broken_item_of_a_sequence_is_named(files, model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    X = Column([*files[:5], str(tmp_path / "text.png"), *files[5:]])
    with pytest.raises(OSError, match=r"X\[5\] cannot be read as an image: Unident"):
        CLIPEmbedder(model, batch_size=2).transform(X)
    embedder = CLIPEmbedder(model, on_error="nan")
    with pytest.warns(UserWarning, match=r"1 images could not be read.*X\[5\]"):
        embeddings = embedder.transform(X)
    assert np.isnan(embeddings).any(axis=1).nonzero()[0].tolist() == [5]


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ({"image": [1]}, r"X must be a sequence of paths.*got dict"),
        ({"a.png"}, r"X must be a sequence of paths.*got set"),
        ((path for path in ["a.png"]), r"X must be a sequence of paths.*got generator"),
        (Column([]), r"X must hold at least one image"),
    ],
)
def test_what_is_no_sequence_is_refused(X, message, model):
    with pytest.raises((TypeError, ValueError), match=message):
        CLIPEmbedder(model).fit(X)


class Rows(Slots):
    """Data set whose items are no images; those of Hugging Face have a shape, too."""

    shape = (17, 2)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": 0}


def test_sequence_of_something_else_is_refused(files, model):
    with pytest.raises(TypeError, match=r"X\[0\] must be a path, .* got dict"):
        CLIPEmbedder(model).transform(Rows(files))
    with pytest.raises(TypeError, match=r"X\[0\] must be a path, .* got int"):
        CLIPEmbedder(model).transform(range(3))


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)


def test_arrays_and_tensors_agree(pictures, model):
    embedder = CLIPEmbedder(model)
    expected = embedder.transform([Image.fromarray(p) for p in pictures])
    last = torch.as_tensor(pictures)
    first = last.permute(0, 3, 1, 2)  # as torchvision has them
    for X in [pictures, last, first, list(pictures), list(last), list(first)]:
        np.testing.assert_array_equal(embedder.transform(X), expected)
    grey = pictures[..., 0]
    expected = embedder.transform([Image.fromarray(p) for p in grey])
    tensor = torch.as_tensor(grey)
    for X in [grey, grey[..., None], tensor, tensor[:, None], list(tensor)]:
        np.testing.assert_array_equal(embedder.transform(X), expected)


class Lazy:
    """Array on disk, such as a data set of h5py or zarr."""

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __len__(self):
        return len(self.array)

    def __getitem__(self, i):
        assert isinstance(i, int)
        return self.array[i]


def test_array_on_disk_is_read_row_by_row(pictures, model):
    embedder = CLIPEmbedder(model, batch_size=2)
    embeddings = embedder.fit_transform(Lazy(pictures))
    np.testing.assert_array_equal(embeddings, embedder.transform(pictures))
    with pytest.raises(ValueError, match=r"got float64 of shape \(5, 20, 24, 3\)"):
        embedder.fit(Lazy(pictures.astype(float)))
    with pytest.raises(ValueError, match="looks like one colour image"):
        embedder.fit(Lazy(pictures[0]))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (torch.zeros((3, 9, 9), dtype=torch.uint8), "looks like one colour image"),
        (torch.zeros((9, 9, 3), dtype=torch.uint8), "looks like one colour image"),
        (torch.zeros((2, 3, 9, 9)), r"uint8 .*got torch.float32 of shape"),
        (torch.zeros((2, 3, 9, 9), dtype=torch.bfloat16), r"uint8 .*torch.bfloat16"),
        ([torch.zeros((3, 9, 9))], r"X\[0\] must be a uint8 .*got torch.float32"),
        ([torch.zeros((3, 9, 4), dtype=torch.uint8)], r"X\[0\].*first or last"),
        ([torch.zeros((5, 9, 9), dtype=torch.uint8)], r"X\[0\] .*shape \(5, 9, 9\)"),
    ],
)
def test_tensors_that_are_no_images(X, message, model):
    with pytest.raises(ValueError, match=message):
        CLIPEmbedder(model).transform(X)


# Transparency that Pillow gets wrong


def rgb(image):
    return np.asarray(_images.decode(_images.read_source(image, "X[0]"), "X[0]"))


def png(depth, colour, row, transparent):
    """Build a PNG of one row: Pillow does not write these."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    channels = {0: 1, 2: 3}[colour]
    width = len(row) * 8 // depth // channels
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"tRNS", transparent),
            chunk(b"IDAT", zlib.compress(b"\0" + row)),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent", "expected"),
    [
        (16, 0, "1234 5678", "1234", [[255] * 3, [0x56] * 3]),
        (16, 0, "0000 ffff", "0000", [[255] * 3, [255] * 3]),
        (16, 2, "123456789abc 0000 0000 0000", "123456789abc", [[255] * 3, [0] * 3]),
        (8, 2, "123456 000000", "001200340056", [[255] * 3, [0] * 3]),
        (8, 0, "12 56", "0012", [[255] * 3, [0x56] * 3]),
        (1, 0, "7f", "0000", [[255] * 3] * 8),
    ],
)
def test_transparent_value_of_a_png(
    loaded, depth, colour, row, transparent, expected, tmp_path
):
    path = tmp_path / "image.png"
    path.write_bytes(png(depth, colour, bytes.fromhex(row), bytes.fromhex(transparent)))
    assert rgb(path)[0].tolist() == expected
    with Image.open(path) as image:
        if loaded:
            image.load()
        assert rgb(image)[0].tolist() == expected


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "RGBX"])
def test_rare_modes_are_read(mode):
    image = Image.new("RGBA", (2, 2), (200, 100, 50, 255))
    image = image.convert("LA") if mode in {"La", "PA"} else image
    image = image.convert("RGB") if mode == "RGBX" else image
    expected = rgb(image)
    np.testing.assert_array_equal(rgb(image.convert(mode)), expected)


# Files that cost too much, or that are no files


def bomb(path, width, height):
    Image.new("1", (width, height)).save(path)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(13000, 13600), (10000, 9000), (8193, 8193)])
def test_large_image_is_refused_before_it_is_decoded(size, tmp_path, monkeypatch):
    path = bomb(tmp_path / "bomb.png", *size)
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(OSError, match=r"X\[0\] cannot be read as an image: .*pixel"):
        rgb(path)
    with Image.open(path) as image:
        with pytest.raises(OSError, match=r"\d+ × \d+ pixels are more"):
            rgb(image)
        assert image.tile  # not decoded


def test_large_image_is_an_error_where_warnings_are(tmp_path):
    # Pillow's warning is an error here: it is one about this image, and says which.
    path = bomb(tmp_path / "bomb.png", 10000, 9000)
    with pytest.raises(OSError, match=r"X\[0\] cannot be read .*DecompressionBomb"):
        rgb(path)


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_size_that_an_icon_announces_is_not_believed(tmp_path):
    data = bomb(tmp_path / "bomb.png", 8193, 8193).read_bytes()
    entry = struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(data), 22)
    icon = tmp_path / "image.ico"
    icon.write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + data)
    with pytest.raises(OSError, match=r"X\[0\] .*8193 × 8193 pixels are more"):
        rgb(icon)


def test_very_long_image_is_refused(model):
    # The preprocessing scales its short side up: 1 x 100 000 pixels become 15 GB.
    with pytest.raises(OSError, match=r"X\[0\].*100000 × 1 pixels.*200 times"):
        CLIPEmbedder(model).transform([Image.new("L", (100_000, 1))])
    assert rgb(Image.new("L", (200, 1))).shape == (1, 200, 3)


def test_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match=r"sparse\.png.*1099511627776 bytes"):
        _images.read_source(path, repr(str(path)))


def test_only_regular_files_are_opened(tmp_path, model, monkeypatch):
    fifo, link = tmp_path / "fifo.png", tmp_path / "link.png"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        paths = [fifo, link, Path("socket.png"), Path("/dev/zero"), tmp_path]
        embedder = CLIPEmbedder(model)
        for path in paths:
            with pytest.raises(OSError, match=r"X\[0\] .*is not a regular file"):
                embedder.transform([path])
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_postscript_is_not_run(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", pytest.fail)
    Image.new("RGB", (4, 4)).save(tmp_path / "image.eps")
    (tmp_path / "image.eps").rename(tmp_path / "image.png")
    with pytest.raises(OSError, match="cannot identify image file"):
        rgb(tmp_path / "image.png")


def test_path_is_printed_as_text(model):
    X = np.array(["/nowhere/a.png"])
    with pytest.raises(OSError, match=r"^X\[0\] \('/nowhere/a\.png'\) cannot be read"):
        CLIPEmbedder(model).transform(X)
    with pytest.raises(FileNotFoundError, match=r"^model='/nowhere' is not a folder"):
        CLIPEmbedder(np.array(["/nowhere"])[0]).transform(X)
