"""The sampler, a run of it, its plan, result, recipe and replay."""
