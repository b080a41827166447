"""Pictures to latents and back: in strips, over ranks, with gradients."""
