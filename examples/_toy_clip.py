"""Images of shapes, and a very small CLIP that knows them; for ``clip_pipeline.py``."""

from itertools import product

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLORS = {
    "red": (220, 60, 60),
    "green": (70, 190, 80),
    "blue": (80, 110, 230),
    "yellow": (225, 205, 70),
    "white": (225, 225, 225),
}


def draw(color, shape, rng, size=32):
    """Draw one shape at random place and size."""
    image = Image.fromarray(rng.integers(0, 110, (size, size, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    x, y = rng.uniform(12, size - 12, 2)
    r = rng.uniform(7, 11)
    box = (x - r, y - r, x + r, y + r)
    fill = tuple(int(c) for c in np.add(COLORS[color], rng.integers(-30, 30, 3)))
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
    elif shape == "cross":
        pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
        pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=3)
    return image


def draw_pictures(folder, rng, n_of_each=24):
    """Write a folder of images for every colour and shape."""
    for color, shape in product(COLORS, SHAPES):
        of_class = folder / f"{color} {shape}"
        of_class.mkdir(parents=True)
        for i in range(n_of_each):
            draw(color, shape, rng).save(of_class / f"{i:02}.png")


def captioned(n, processor, rng):
    """Draw images and write their captions, as token ids."""
    named = [(str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))) for _ in range(n)]
    captions = [
        [0, 1 + list(COLORS).index(color), 6 + SHAPES.index(shape), 15]
        for color, shape in named
    ]
    drawn = processor([draw(*name, rng) for name in named], return_tensors="pt")
    return {"pixel_values": drawn["pixel_values"], "input_ids": torch.tensor(captions)}


def train_clip(folder, rng, n_steps=150):
    """Train a very small CLIP and save it in the format of a checkpoint."""
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    tokens = {
        "vocab_size": 16,
        "bos_token_id": 0,
        "eos_token_id": 15,
        "pad_token_id": 15,
    }
    config = transformers.CLIPConfig(
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        text_config=tower | tokens | {"max_position_embeddings": 4},
        projection_dim=128,
    )
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = transformers.CLIPModel(config)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=3e-3)
    for _ in range(n_steps):
        optimizer.zero_grad()
        clip(**captioned(48, processor, rng), return_loss=True).loss.backward()
        optimizer.step()
    clip.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
