"""What users hang on a pipeline, tiny and real: LoRA, textual inversion, IP-Adapter, ControlNet, offload, compiling.

Each of ``ADAPTERS`` changes a pipeline and gives it back, or another around the same networks, with what a call
then needs. ``findings`` is all that a run must leave as it was.
"""

import copy
import hashlib

import accelerate
import diffusers
import torch
from diffusers import ControlNetModel
from diffusers.image_processor import VaeImageProcessor
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tiny_families import FAMILIES

CPU = torch.device("cpu")
ATTENTION = ["to_k", "to_out.0"]
TEXT = ["q_proj"]
EMBED = 16  # width of what the image encoder gives
TOKENS = 4  # that an IP-Adapter makes of one picture
STATES = {}  # of LoRAs, by what they are for


# ---------------------------------------------------------------- LoRA


def lora_layers(network, targets, seed):
    """The LoRA weights of a network, nowhere zero."""
    copied = copy.deepcopy(network)
    torch.manual_seed(seed)
    copied.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
    return {key: value.clone() for key, value in get_peft_model_state_dict(copied).items()}


def lora(pipe, seed=1, text=True):
    """The state dict of a LoRA for the denoiser, and for each text encoder that the pipeline has."""
    denoiser = "transformer" if hasattr(pipe, "transformer") else "unet"
    key = (type(pipe), getattr(pipe, denoiser).num_parameters(), seed, text)
    if key not in STATES:
        wanted = {denoiser: ATTENTION}
        encoders = ("text_encoder", "text_encoder_2") if text else ()
        wanted |= {name: TEXT for name in encoders if getattr(pipe, name, None) is not None}
        STATES[key] = {
            f"{name}.{layer}": value
            for number, (name, targets) in enumerate(wanted.items())
            for layer, value in lora_layers(getattr(pipe, name), targets, 10 * seed + number).items()
        }
    return dict(STATES[key])


def with_lora(pipe):
    pipe.load_lora_weights(lora(pipe), adapter_name="first")
    return pipe, {}


def with_scaled_lora(pipe):
    pipe, _ = with_lora(pipe)
    name = "joint_attention_kwargs" if hasattr(pipe, "transformer") else "cross_attention_kwargs"
    return pipe, {name: {"scale": 0.3}}


# ---------------------------------------------------------------- textual inversion


def inversion(encoder, vectors, seed=1):
    """So many vectors that stand for one word, Float32[Tensor, "vectors width"]."""
    width = encoder.get_input_embeddings().weight.shape[1]
    return torch.randn((vectors, width), generator=torch.Generator().manual_seed(seed))


def with_inversion(pipe, vectors=2):
    """``<fur>`` for every tokenizer of the pipeline."""
    for end in ("", "_2"):
        encoder, tokenizer = getattr(pipe, f"text_encoder{end}", None), getattr(pipe, f"tokenizer{end}", None)
        if encoder is not None:
            given = {"text_encoder": encoder, "tokenizer": tokenizer}
            pipe.load_textual_inversion(inversion(encoder, vectors), token="<fur>", **given)
    return pipe, {"prompt": "a <fur> fox"}


# ---------------------------------------------------------------- IP-Adapter


def picture(size=24, seed=1):
    """A random picture, Pillow."""
    values = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(seed))
    processor = VaeImageProcessor()
    return processor.numpy_to_pil(processor.pt_to_numpy(values))[0]


def image_encoder():
    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=EMBED,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


def ip_adapter(unet, seed=1):
    """The state dict of an IP-Adapter in the layout of the released files: layers count by odd numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return 0.5 * torch.randn(shape, generator=generator)

    width, layers = unet.config.cross_attention_dim, {}
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(crossing):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{part}.weight"] = draw(hidden, width)
    projection = {
        "proj.weight": draw(TOKENS * width, EMBED),
        "proj.bias": draw(TOKENS * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def with_ip_adapter(pipe, scale=0.7):
    pipe.register_modules(image_encoder=image_encoder())
    pipe.load_ip_adapter(ip_adapter(pipe.unet), subfolder="", weight_name="")
    pipe.set_ip_adapter_scale(scale)
    return pipe, {"ip_adapter_image": picture()}


# ---------------------------------------------------------------- ControlNet


def control_network(unet, seed=1):
    """A control network of a U-Net; nowhere zero, so that its hint counts."""
    torch.manual_seed(seed)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "controlnet_" in name or "cond_embedding" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return network


def controlled(pipe, networks, kind=""):
    """The same networks in a pipeline with control, e.g. of kind ``Img2Img``."""
    name = type(pipe).__name__.removesuffix("Pipeline") + f"ControlNet{kind}Pipeline"
    options = {} if "XL" in name else {"requires_safety_checker": False}
    pipe = getattr(diffusers, name)(**pipe.components, controlnet=networks, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hint(height, width, seed=1):
    """Random grey levels, Float32[Tensor, "1 3 height width"], different at each pixel."""
    return torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(seed))


def with_control(pipe):
    return controlled(pipe, control_network(pipe.unet)), {"control_image": picture(128)}


# ---------------------------------------------------------------- offload


def modules(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def with_model_offload(pipe):
    """Hooks as ``enable_model_cpu_offload`` puts them, which wants an accelerator."""
    hook = None
    for part in modules(pipe).values():
        _, hook = accelerate.cpu_offload_with_hook(part, CPU, prev_module_hook=hook)
    return pipe, {}


def with_sequential_offload(pipe):
    """Hooks as ``enable_sequential_cpu_offload`` puts them, which wants an accelerator."""
    for part in modules(pipe).values():
        accelerate.cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)
    return pipe, {}


def with_group_offload(pipe):
    pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level")
    return pipe, {}


# ---------------------------------------------------------------- compiling


def with_compiled(pipe):
    """A compiled denoiser in the pipeline's place for it."""
    name = "transformer" if hasattr(pipe, "transformer") else "unet"
    setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
    return pipe, {}


def with_compiled_layers(pipe):
    """Only the layers that repeat, where they are."""
    pipe.unet.compile_repeated_blocks(backend="eager", dynamic=True)
    return pipe, {}


# ---------------------------------------------------------------- all of them


def plain(pipe):
    return pipe, {}


ADAPTERS = {
    "plain": plain,
    "lora": with_lora,
    "scaled lora": with_scaled_lora,
    "textual inversion": with_inversion,
    "ip-adapter": with_ip_adapter,
    "controlnet": with_control,
    "model offload": with_model_offload,
    "sequential offload": with_sequential_offload,
    "group offload": with_group_offload,
    "compiled": with_compiled,
    "compiled layers": with_compiled_layers,
}


def build(family, *names):
    """A tiny pipeline of a family with some adapters, and what a call needs besides the prompt."""
    pipe, call = FAMILIES[family](), {}
    for name in names:
        pipe, more = ADAPTERS[name](pipe)
        call |= more
    return pipe, call


# ---------------------------------------------------------------- what a run must leave as it was


def findings(pipe):
    """All that there is to a pipeline: values, types, places, configs, processors, hooks and names of attributes."""
    found = {"attributes": sorted(vars(pipe))}
    for name, part in pipe.components.items():
        found[name, "class"] = (type(part), id(part))
        if isinstance(part, torch.nn.Module):
            found |= {(name, *key): value for key, value in _of_module(part).items()}
        elif hasattr(part, "get_added_vocab"):
            found[name, "vocabulary"] = (len(part), part.get_added_vocab())
        elif part is not None:
            found[name, "state"] = {key: _plain(value) for key, value in vars(part).items()}
    return found


def _of_module(network):
    found = {("config",): str(getattr(network, "config", None))}
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for key, value in tensors:
        found["tensor", key] = _plain(value)
    for key, processor in getattr(network, "attn_processors", {}).items():
        found["processor", key] = (id(processor), str(getattr(processor, "scale", None)))
    for key, module in network.named_modules():
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        found["hooks", key] = (*hooks, type(vars(module).get("_hf_hook")).__name__, module.training)
        found["compiled", key] = module._compiled_call_impl is not None
        away = getattr(vars(module).get("_hf_hook"), "weights_map", None)
        if away is not None:
            own = [*module._parameters, *module._buffers]
            found["away", key] = {one: _plain(away[one]) for one in own if one in set(away)}
        if isinstance(module, BaseTunerLayer):
            active = (list(module.active_adapters), module.disable_adapters, list(module.merged_adapters))
            found["lora", key] = (dict(module.scaling), *active)
    return found


def _plain(value):
    if not isinstance(value, torch.Tensor):
        return repr(value)
    where = (tuple(value.shape), value.stride(), str(value.dtype), str(value.device))
    where += (value.requires_grad, value.is_inference())
    if value.is_meta:
        return where
    values = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return (*where, hashlib.sha256(values).hexdigest())
