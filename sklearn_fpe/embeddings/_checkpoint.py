"""Checkpoints: where a model lies, what identifies it, how it is loaded."""

import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sklearn_fpe.embeddings._optional import import_optional

_MODEL_TYPES = ("clip", "siglip")
_IMAGE_ENCODER = ("vision_model.", "visual_projection.")
# The files of a folder that decide what comes out of its image encoder.
_PATTERNS = (
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("*.safetensors", "*.bin", "*.index.json"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A model on the hub at one commit, or in a local folder as it is now.

    Parameters
    ----------
    source : str
        The name on the hub, or the folder.
    commit : str or None
        The commit on the hub; None for a folder.
    files : tuple of tuple
        For a folder, path, size, times and inode of its files: what must be unchanged
        for a loaded model, or a digest, to be still right.
    local_files_only : bool
        Whether the hub may be asked for files.
    """

    source: str
    commit: str | None
    files: tuple
    local_files_only: bool

    def identity(self, memory):
        """Name that changes whenever an embedding could.

        Digests of a folder's files are themselves kept in `memory`: weights are large.
        """
        if self.commit is not None:
            return [self.source, self.commit]
        digest = memory.cache(_file_digest, verbose=0, mmap_mode=None)
        return [[Path(file[0]).name, digest(*file)] for file in self.files]

    def config(self):
        """Load the configuration and check that the type is supported."""
        with _loading(self.source):
            config = import_optional("transformers").AutoConfig.from_pretrained(
                self.source, **self._options()
            )
        if config.model_type not in _MODEL_TYPES:
            raise ValueError(
                f"model={self.source!r} must be a checkpoint of type "
                f"{' or '.join(_MODEL_TYPES)}, got type {config.model_type!r}."
            )
        return config

    def n_features(self):
        """Width of the embedding."""
        config = self.config()
        if config.model_type == "clip":
            return config.projection_dim
        return config.vision_config.hidden_size

    def load(self, dtype, device):
        """Load the image encoder and its preprocessing."""
        transformers = import_optional("transformers")
        options = self._options()
        config = self.config()
        with _loading(self.source):
            # Not the torchvision backend: pixels shall not depend on what is installed.
            processor = transformers.AutoImageProcessor.from_pretrained(
                self.source, backend="pil", **options
            )
            model, info = transformers.AutoModel.from_pretrained(
                self.source,
                config=config,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                output_loading_info=True,
                **options,
            )
        # transformers fills what is missing with random numbers.
        missing = [k for k in info["missing_keys"] if k.startswith(_IMAGE_ENCODER)]
        if missing:
            raise OSError(
                f"model={self.source!r} lacks {len(missing)} weights of the image "
                f"encoder, {min(missing)!r} the first of them."
            )
        del model.text_model  # never used: it would only take memory
        return ImageEncoder(model.to(device).eval(), processor)

    def _options(self):
        return {"revision": self.commit, "local_files_only": self.local_files_only}


class ImageEncoder:
    """Preprocessing and image encoder of a checkpoint."""

    def __init__(self, model, processor):
        self.model = model
        self.processor = processor

    def preprocess(self, image):
        """Resize, crop and scale a PIL image; tensor of shape (3, height, width)."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    @torch.inference_mode()
    def encode(self, pixels):
        """Embed preprocessed images; float32 ndarray of shape (n, n_features)."""
        parameter = next(self.model.parameters())
        batch = torch.stack(pixels).to(parameter.device, parameter.dtype)
        features = self.model.get_image_features(pixel_values=batch).pooler_output
        vectors = features.float().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ValueError(
                f"The embeddings are not finite in {parameter.dtype}: "
                "dtype='float32' or dtype='bfloat16' has the range for this model."
            )
        return vectors


def resolve_checkpoint(model, revision, local_files_only):
    """Find the folder, or the commit on the hub, that `model` stands for."""
    name = os.fspath(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision must be None where model is a folder ({name!r}), "
                f"got {revision!r}."
            )
        return Checkpoint(str(folder), None, _stamps(folder), local_files_only=True)
    rooted = folder.is_absolute() or name.startswith((".", "~"))
    if rooted or isinstance(model, os.PathLike) or folder.exists():
        raise FileNotFoundError(f"model={name!r} is not a folder.")
    hub = import_optional("huggingface_hub")
    local_files_only = local_files_only or hub.is_offline_mode()
    try:
        commit = hub.HfApi().resolve_revision(
            name, revision=revision, local_files_only=local_files_only
        )
    except Exception as exc:
        raise OSError(
            f"model={name!r} is neither a local folder nor found on the Hugging Face "
            f"Hub. Check the name and the connection, or pass the folder of a "
            f"downloaded checkpoint. {exc}"
        ) from exc
    return Checkpoint(name, commit.resolved, (), local_files_only)


def _stamps(folder):
    files = sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)})
    stats = [(os.path.abspath(path), path.stat()) for path in files]
    return tuple(
        (path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path, s in stats
    )


def _file_digest(path, size, mtime_ns, ctime_ns, inode):
    """SHA-256 of a file; the other arguments tell its states apart."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _loading(source):
    """Load without progress bars; whatever fails names the model."""
    logging = import_optional("transformers.utils.logging")
    previous = logging.set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True})
    )
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as exc:
        raise OSError(f"model={source!r} could not be loaded: {exc}") from exc
    finally:
        logging.set_tqdm_hook(previous)
