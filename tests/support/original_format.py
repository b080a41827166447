"""Pipelines as single files with the key names of the original releases: diffusers' names, mapped back."""

import json
import math
import re

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "text_projection.weight": "text_projection",
}
TRANSFORMER = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
JOINT_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def renamed(name, table):
    """The name with each part of it that the table knows replaced, longest first."""
    for old in sorted(table, key=len, reverse=True):
        name = re.sub(rf"(^|\.){re.escape(old)}(\.|$)", rf"\g<1>{table[old]}\g<2>", name)
    return name


def original_unet(unet):
    per_block = unet.config.layers_per_block + 1
    attends = {i: kind.startswith("CrossAttn") for i, kind in enumerate(unet.config.up_block_types)}
    result = {}
    for name, value in unet.state_dict().items():
        found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
        if found is None:
            new = renamed(name, UNET)
        else:
            way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
            stem, first = ("input_blocks", 1) if way == "down" else ("output_blocks", 0)
            if kind.endswith("samplers"):
                layer = per_block - 1
                rest = rest.replace("conv", "op") if way == "down" else rest
            slot = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 1 + attends.get(block, 0)}[kind]
            new = f"{stem}.{first + block * per_block + layer}.{slot}.{rest}"
        result[renamed(new, RESNET) if ".attentions." not in name else new] = value
    return result


def original_vae(vae):
    last = len(vae.config.block_out_channels) - 1
    result = {}
    for name, value in vae.state_dict().items():
        new = re.sub(r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1_blocks.\2.block.\3", name)
        new = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", new)
        new = renamed(new.replace("down_blocks", "down"), VAE)
        is_attention = "attentions" in name and value.ndim == 2
        result[new] = value[:, :, None, None] if is_attention else value
    return result


def original_clip(encoder):
    """Stored as transformers did before it dropped a prefix."""
    state = encoder.state_dict()
    return {k if k.startswith("text_") else f"text_model.{k}": v for k, v in state.items()}


def original_open_clip(encoder):
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    result = {}
    for name in [name for name in state if ".q_proj." in name]:
        fused = torch.cat([state.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")])
        layer, _, kind = renamed(name, OPEN_CLIP).partition(".q_proj.")
        result[f"{layer}.in_proj_{kind}"] = fused
    result |= {renamed(name, OPEN_CLIP): value for name, value in state.items()}
    width = state["final_layer_norm.weight"].shape[0]
    result["text_projection"] = result.get("text_projection", torch.eye(width)).T
    return result | {"logit_scale": torch.tensor(4.6)}


def original_transformer(transformer):
    state = dict(transformer.state_dict())
    last = transformer.config.num_layers - 1
    result = {}
    for block in range(last + 1):
        for side, parts in (
            ("x_block", ("to_q", "to_k", "to_v")),
            ("context_block", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ):
            for kind in ("weight", "bias"):
                names = [f"transformer_blocks.{block}.attn.{part}.{kind}" for part in parts]
                result[f"joint_blocks.{block}.{side}.attn.qkv.{kind}"] = torch.cat([state.pop(name) for name in names])
    for name, value in state.items():
        swapped = name.startswith(("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear"))
        new = name.replace("transformer_blocks", "joint_blocks")
        new = renamed(new, JOINT_BLOCK if new != name else TRANSFORMER)
        result[new] = torch.cat(value.chunk(2)[::-1]) if swapped else value
    return result


def sections(pipe):
    """(prefix, tensors) of every part, by the pipeline's class."""
    kind = type(pipe).__name__
    yield "first_stage_model.", original_vae(pipe.vae)
    if kind == "StableDiffusion3Pipeline":
        yield "model.diffusion_model.", original_transformer(pipe.transformer)
        first = {k: v for k, v in original_clip(pipe.text_encoder).items() if k != "text_projection.weight"}
        yield "text_encoders.clip_l.transformer.", first
        yield "text_encoders.clip_g.transformer.", original_clip(pipe.text_encoder_2)
        if getattr(pipe, "text_encoder_3", None) is not None:
            tied = "encoder.embed_tokens.weight"
            state = pipe.text_encoder_3.state_dict()
            yield "text_encoders.t5xxl.transformer.", {k: v for k, v in state.items() if k != tied}
        return
    yield "model.diffusion_model.", original_unet(pipe.unet)
    if kind == "StableDiffusionXLPipeline":
        yield "conditioner.embedders.0.transformer.", original_clip(pipe.text_encoder)
        yield "conditioner.embedders.1.model.", original_open_clip(pipe.text_encoder_2)
    elif pipe.unet.config.use_linear_projection:
        yield "cond_stage_model.model.", original_open_clip(pipe.text_encoder)
    else:
        yield "cond_stage_model.transformer.", original_clip(pipe.text_encoder)


def original_state(pipe):
    """Every tensor of the pipeline under its original name."""
    return {prefix + name: value.contiguous() for prefix, part in sections(pipe) for name, value in part.items()}


def hollow_file(path, shapes):
    """A safetensors file of float16 zeros that takes no room on a disk that knows holes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def save_single_file(pipe, path, **more):
    """Write the pipeline as one file, with more tensors if wanted."""
    save_file(original_state(pipe) | more, path)
    return path
