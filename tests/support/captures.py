"""Looks at tiny networks' attention, as the package does and as their processors had it."""

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel

from tiny import NATIVE, tiny_unet
from tiny_families import FAMILIES
from vitrail.backbones.attention.cross_attention import capture_maps, eager, layer_shape
from vitrail.backbones.attention.joint_attention_maps import capture_joint_maps
from vitrail.core.schedule.streams import Streams

ROWS, TOKENS = [0, 2], [1, 2, 5]
SIZE = (NATIVE, NATIVE)
WORDS = 13  # tokens of text; no layer has as many cells


def draw(*shape, seed=0):
    return Streams(seed).normal(shape, "drawn")


def fresh_unet(kind="sd"):
    torch.manual_seed(0)
    return tiny_unet().eval() if kind == "sd" else FAMILIES[kind]().unet


def inputs_of(network, size=SIZE):
    """Latents, timestep and text of three rows for any of the tiny networks, in the network's own type."""
    config, rows, dtype = network.config, 3, network.dtype

    def draw_own(*shape):
        return draw(*shape).to(dtype)

    latents = draw_own(rows, config.in_channels, *size)
    if hasattr(config, "joint_attention_dim"):
        text = {"encoder_hidden_states": draw_own(rows, 24, config.joint_attention_dim)}
        text["pooled_projections"] = draw_own(rows, config.pooled_projection_dim)
        return (latents,), {**text, "timestep": torch.tensor([500.0] * rows)}
    text = {"encoder_hidden_states": draw_own(rows, WORDS, config.cross_attention_dim)}
    if config.addition_embed_type == "text_time":
        ids = torch.tensor([[64, 64, 0, 0, 64, 64]] * rows)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        text["added_cond_kwargs"] = {"text_embeds": draw_own(rows, pooled), "time_ids": ids}
    return (latents, torch.tensor(500)), text


def forward(network, size=SIZE, **more):
    arguments, named = inputs_of(eager(network), size)
    with torch.inference_mode():
        return network(*arguments, return_dict=False, **{**named, **more})[0]


def captured(network, layers=(), over="mean", size=SIZE, **more):
    capture = capture_joint_maps if hasattr(eager(network).config, "joint_attention_dim") else capture_maps
    with capture(eager(network), layers, ROWS, TOKENS, over) as maps:
        forward(network, size, **more)
    return maps.mean(size)


class Scores:
    """Every pair of queries and keys that the processors hand to the fused attention, in float32, with its bias."""

    def __init__(self, monkeypatch):
        self.calls = []
        fused = F.scaled_dot_product_attention

        def record(query, key, value, attn_mask=None, **options):
            self.calls.append((query.float(), key.float(), attn_mask))
            return fused(query, key, value, attn_mask=attn_mask, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", record)

    def maps(self, is_wanted, cells_of, over="mean", size=SIZE):
        """Whole softmax matrices of the wanted calls, reduced as a map is."""
        grown = []
        for query, key, bias in (call for call in self.calls if is_wanted(*call)):
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            whole = (scores if bias is None else scores + bias).softmax(-1)
            cells = cells_of(query, key)
            first = cells if query.shape[2] == key.shape[2] else 0
            shares = whole[ROWS][:, :, :cells, [first + token for token in TOKENS]].mean(1)
            flat = shares.mean(-1) if over == "mean" else shares.amax(-1)
            grid = flat.view(len(ROWS), 1, *layer_shape(*size, cells))
            grown.append(F.interpolate(grid, size, mode="bilinear", align_corners=False))
        return torch.stack(grown).mean(0)


def tiny_transformer(**options):
    """Stable Diffusion 3 as in ``tiny_families``, deeper if wanted."""
    torch.manual_seed(3)
    return SD3Transformer2DModel(
        sample_size=NATIVE,
        patch_size=2,
        in_channels=16,
        num_layers=options.pop("num_layers", 4),
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
        pos_embed_max_size=24,
        **options,
    ).eval()
