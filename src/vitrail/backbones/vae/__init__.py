"""Conversion between pictures and latents: in strips, over ranks, with gradients."""
