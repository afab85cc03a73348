"""Checkpoints: where a model lies, what identifies it, how it is loaded."""

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sklearn_fpe._optional import import_optional

_MODEL_TYPES = ("clip", "siglip")
# transformers reports its progress through one hook per process.
_LOADING = threading.RLock()
_IMAGE_ENCODER = ("vision_model.", "visual_projection.")
# The files of a folder that decide what comes out of its image encoder.
_PATTERNS = (
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("*.safetensors", "*.bin", "*.index.json"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A model on the hub at one commit, or in a local folder as it is now.

    `source` is the name on the hub, or the folder, which has no `commit`. `files` are
    path, size, times and inode of the files of a folder: what must be unchanged for a
    loaded model, or a digest, to be still right. The hub is asked for no file if
    `local_files_only` is true.
    """

    source: str
    commit: str | None
    files: tuple
    local_files_only: bool

    def identity(self, file_digest):
        """Name that changes whenever an embedding could.

        `file_digest` takes one of `files` and returns the digest of its content.
        """
        if self.commit is not None:
            return [self.source, self.commit]
        return [[Path(file[0]).name, file_digest(file)] for file in self.files]

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

    def load_processor(self):
        """Load the preprocessing."""
        self.config()  # a model of another type is to be named as such
        transformers = import_optional("transformers")
        with _loading(self.source):
            # Not the torchvision backend: pixels shall not depend on what is installed.
            return transformers.AutoImageProcessor.from_pretrained(
                self.source, backend="pil", **self._options()
            )

    def load(self, dtype, device):
        """Load the image encoder."""
        transformers = import_optional("transformers")
        config = self.config()
        with _loading(self.source):
            model, info = transformers.AutoModel.from_pretrained(
                self.source,
                config=config,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                # A configuration may name a kernel, which is code from the hub.
                attn_implementation="sdpa",
                output_loading_info=True,
                **self._options(),
            )
        # transformers fills what is missing with random numbers.
        missing = [k for k in info["missing_keys"] if k.startswith(_IMAGE_ENCODER)]
        if missing:
            raise OSError(
                f"model={self.source!r} lacks {len(missing)} weights of the image "
                f"encoder, {min(missing)!r} the first of them."
            )
        del model.text_model  # never used: it would only take memory
        return model.to(device).eval()

    def _options(self):
        # trust_remote_code=False: None would ask on standard input.
        return {
            "revision": self.commit,
            "local_files_only": self.local_files_only,
            "trust_remote_code": False,
        }


class ImageEncoder:
    """Preprocessing and image encoder of a checkpoint, loaded when they are needed."""

    def __init__(self, checkpoint, dtype):
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.model = None
        self.processor = None
        self._lock = threading.Lock()

    def load(self, device):
        """Load the model unless it is loaded.

        Not from the threads that preprocess: an interrupt would wait for them until
        a download has ended.
        """
        if self.model is None:
            self.model = self.checkpoint.load(self.dtype, device)

    def preprocess(self, image):
        """Resize, crop and scale a PIL image; tensor of shape (3, height, width).

        Threads may call it at the same time.
        """
        with self._lock:
            if self.processor is None:
                self.processor = self.checkpoint.load_processor()
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
    name = str(os.fspath(model))
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


@contextmanager
def _loading(source):
    """Load without progress bars; whatever fails names the model."""
    logging = import_optional("transformers.utils.logging")
    with _LOADING:
        previous = logging.set_tqdm_hook(
            lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True})
        )
        try:
            yield
        except (ImportError, MemoryError):
            raise
        except Exception as exc:
            if "trust_remote_code" in str(exc):
                raise OSError(
                    f"model={source!r} needs code of its own, which is never run here: "
                    "use a checkpoint of a type that transformers knows."
                ) from exc
            raise OSError(f"model={source!r} could not be loaded: {exc}") from exc
        finally:
            logging.set_tqdm_hook(previous)
