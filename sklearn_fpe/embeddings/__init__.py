"""From images to embeddings: frozen CLIP encoders as scikit-learn transformers.

Needs the extra ``clip`` (``pip install "sklearn-fpe[clip]"``); importing
``sklearn_fpe.embeddings`` does not load transformers.
"""

from sklearn_fpe.embeddings._clip import CLIPEmbedder
from sklearn_fpe.embeddings._folder import load_image_folder
from sklearn_fpe.embeddings._writing import write_shards

__all__ = ["CLIPEmbedder", "load_image_folder", "write_shards"]
