"""Files that metrics read, small or random: Inception weights, a CLIP folder, a folder of pictures."""

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tiny import tiny_tokenizer
from vitrail.metrics.inception_network import InceptionNetwork


def inception_weights(seed=0):
    """Random tensors by the names of the public file, which keep the size of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in InceptionNetwork().state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("conv.weight"):
            weights[name] = noise * (2 / noise[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            weights[name] = 1 + 0.2 * noise.clamp(-2, 2)
        elif not name.endswith("num_batches_tracked"):
            weights[name] = 0.1 * noise
    return weights


def write_inception(path, **changes):
    """The file with some tensors changed, or left out where they are None; halves, which load as well."""
    weights = {**inception_weights(), **changes}
    save_file({name: each.half() for name, each in weights.items() if each is not None}, path)
    return str(path)


def write_clip(folder, seed=0):
    """A tiny CLIPModel with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    shared = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shared,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **shared)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_picture(picture, path):
    """A picture in [0, 1] as 8 bits a colour."""
    pixels = (255 * picture).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()
    Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels.numpy().tobytes()).save(path)
    return path
