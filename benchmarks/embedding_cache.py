"""What the cache of embeddings saves when the same images are embedded again.

    python -m benchmarks.embedding_cache [--json PATH]

Noise images are saved as files and embedded twice by a CLIP of random weights, the
architecture of ViT-B/32 with fewer layers, with an empty cache at first. A real
checkpoint is slower, so that the share of the second time is smaller.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from benchmarks._report import print_table, write_json
from sklearn_fpe.embeddings import CLIPEmbedder


def save_checkpoint(folder, n_layers):
    """Save a CLIP of random weights whose images are 224 pixels wide."""
    config = transformers.CLIPConfig(
        vision_config={"num_hidden_layers": n_layers},
        text_config={"num_hidden_layers": 1},
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)


def save_images(folder, n_images, size):
    """Save noise as files; return their paths."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(n_images)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(path)
    return [str(path) for path in paths]


def embed(checkpoint, paths, memory):
    """Embed with a new estimator; return embeddings and wall time."""
    start = time.perf_counter()
    embeddings = CLIPEmbedder(checkpoint, memory=memory).fit_transform(paths)
    return embeddings, time.perf_counter() - start


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="benchmarks/results/embedding_cache.json")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "clip")
        save_checkpoint(checkpoint, args.layers)
        paths = save_images(Path(folder), args.images, args.size)
        embed(checkpoint, paths[:8], None)  # imports and reads
        for repetition in range(args.repeats):
            memory = Path(folder, f"cache-{repetition}")
            first, first_s = embed(checkpoint, paths, memory)
            again, again_s = embed(checkpoint, paths, memory)
            files = [file for file in memory.rglob("*") if file.is_file()]
            rows.append(
                {
                    "first_s": first_s,
                    "again_s": again_s,
                    "ratio": again_s / first_s,
                    "files": len(files),
                    "bytes_per_image": sum(file.stat().st_size for file in files)
                    / len(paths),
                    "same": bool((first == again).all()),
                }
            )
    print_table(rows, list(rows[0]))
    print(f"median ratio {statistics.median(row['ratio'] for row in rows):.3f}")
    write_json(args.json, rows, settings=vars(args))


if __name__ == "__main__":
    main()
