"""The sampler, its plan, a run of it, its result, recipes and their replay."""
