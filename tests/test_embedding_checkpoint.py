"""A checkpoint is data: nothing in its folder is run, and nobody is asked."""

import json
import sys

import numpy as np
import pytest
import torch
from clip_checkpoint import save_clip

from sklearn_fpe.embeddings import CLIPEmbedder

transformers = pytest.importorskip(
    "transformers", reason="the extra 'clip' is not installed: transformers is missing"
)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)


class Terminal:
    """Standard input of a user who says yes to everything."""

    def __init__(self):
        self.reads = 0

    def readline(self, *args):
        self.reads += 1
        return "y\n"


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", terminal)
    return terminal


CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel
class Config(CLIPConfig): model_type = "mine"
class Processor(CLIPImageProcessorPil): pass
class Model(CLIPModel): pass
"""


def name_code(folder, file, auto_map, known):
    """Make a configuration name code of its folder; return the file it would make."""
    marker = folder / "was_run"
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / file).read_text()) | {"auto_map": auto_map}
    if not known:
        config |= {"model_type": "mine", "image_processor_type": "Mine"}
    (folder / file).write_text(json.dumps(config))
    return marker


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("preprocessor_config.json", {"AutoImageProcessor": "code.Processor"}),
        ("config.json", {"AutoConfig": "code.Config", "AutoModel": "code.Model"}),
    ],
)
def test_code_of_a_checkpoint_is_not_run(
    file, auto_map, known, tmp_path, pictures, terminal, capfd
):
    save_clip(tmp_path)
    expected = CLIPEmbedder(tmp_path).transform(pictures)
    marker = name_code(tmp_path, file, auto_map, known)
    embedder = CLIPEmbedder(tmp_path)
    if known:  # a type of transformers: the code is not needed
        np.testing.assert_array_equal(embedder.transform(pictures), expected)
    else:
        with pytest.raises(OSError, match="needs code of its own, which is never run"):
            embedder.transform(pictures)
        if file == "config.json":
            with pytest.raises(OSError, match="needs code of its own"):
                embedder.get_feature_names_out()
    assert not marker.exists()
    assert terminal.reads == 0
    assert "[y/N]" not in capfd.readouterr().out


@pytest.mark.parametrize("place", ["config", "vision_config"])
def test_kernel_of_a_checkpoint_is_not_fetched(place, tmp_path, pictures, monkeypatch):
    from transformers import modeling_utils

    save_clip(tmp_path)
    expected = CLIPEmbedder(tmp_path).transform(pictures)
    config = json.loads((tmp_path / "config.json").read_text())
    target = config if place == "config" else config[place]
    target["attn_implementation"] = "someone/some-kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", pytest.fail)
    np.testing.assert_array_equal(CLIPEmbedder(tmp_path).transform(pictures), expected)


def test_weights_are_no_pickle_that_runs(tmp_path, pictures):
    marker = tmp_path / "was_run"

    class Payload:
        def __reduce__(self):
            return marker.touch, ()

    save_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"visual_projection.weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model='.*' could not be loaded"):
        CLIPEmbedder(tmp_path).transform(pictures)
    assert not marker.exists()


def test_failed_preprocessing_names_the_image(tmp_path, pictures):
    save_clip(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text()) | {"image_mean": [0.5]}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="mean") as info:
        CLIPEmbedder(tmp_path).transform(pictures)
    assert "X[0]" in "".join(info.value.__notes__)
