"""A small random CLIP checkpoint, saved to a folder."""

import torch

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = TOWER | {"image_size": 16, "patch_size": 8}
TEXT = TOWER | {"vocab_size": 20, "max_position_embeddings": 8}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def save_clip(folder, seed=0, projection_dim=6):
    """Save a model and its image processor; return the folder's name."""
    import transformers

    config = transformers.CLIPConfig(
        vision_config=VISION, text_config=TEXT | TOKENS, projection_dim=projection_dim
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.CLIPModel(config)
    # A fresh model has nearly constant features; these depend on the image.
    with torch.no_grad():
        model.vision_model.embeddings.patch_embedding.weight *= 100
    model.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    return str(folder)
