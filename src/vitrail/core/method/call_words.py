"""Keywords of diffusers' calls that a run does not have, each with its replacement or the reason it is missing."""

from __future__ import annotations

from collections.abc import Mapping

_SCHEDULE = "the scheduler sets its own timesteps; choose another with scheduler, or configure pipe.scheduler"
_SECOND = "every text encoder gets the one prompt; give prompt_embeds and pooled_prompt_embeds for several texts"
_SIZES = "what the network is told about sizes belongs to the method, see 'sizes' of a stage"
_PARTS = "a run does all steps; strength says where it begins"
_MASK = "inpainting is not served; a control network for it takes a hint with -1 where it should draw"
_SLG = "skipping layers is not served; 'noise-damped' is a guidance that weakens the network instead"

CALL_WORDS: Mapping[str, str] = {
    "add_predicted_noise": "the noise is drawn from the seed, at every start",
    "aesthetic_score": "refiners are not served",
    "callback": "it was replaced; give callback_on_step_end",
    "callback_steps": "it was replaced; callback_on_step_end is called after every step and may count them",
    "controlnet_pooled_projections": "a ControlNet of Stable Diffusion 3 is not served",
    "crops_coords_top_left": _SIZES,
    "denoising_end": _PARTS,
    "denoising_start": _PARTS,
    "guess_mode": "it is not served; a small controlnet_conditioning_scale leaves more to the network",
    "image_embeds": "give ip_adapter_image_embeds",
    "mask_image": _MASK,
    "masked_image_latents": _MASK,
    "max_sequence_length": "T5 reads 256 tokens; give prompt_embeds for more",
    "mu": _SCHEDULE,
    "negative_aesthetic_score": "refiners are not served",
    "negative_crops_coords_top_left": _SIZES,
    "negative_original_size": _SIZES,
    "negative_prompt_2": _SECOND,
    "negative_prompt_3": _SECOND,
    "negative_target_size": _SIZES,
    "original_size": _SIZES,
    "padding_mask_crop": _MASK,
    "prompt_2": _SECOND,
    "prompt_3": _SECOND,
    "sigmas": _SCHEDULE,
    "skip_guidance_layers": _SLG,
    "skip_layer_guidance_scale": _SLG,
    "skip_layer_guidance_start": _SLG,
    "skip_layer_guidance_stop": _SLG,
    "target_size": _SIZES,
    "timesteps": _SCHEDULE,
}

OF_A_CALL: Mapping[str, str] = {  # words that a call has and a file of a run does not
    "callback_on_step_end": "it is code; give it to the call, or write a plugin",
    "generator": "a file has a seed, which gives the same picture on every device",
    "num_images_per_prompt": "give num_images; picture i has seed + i",
    "output_type": "a run writes files; their names say of which kind",
    "return_dict": "it belongs to the call of a sampler",
}
