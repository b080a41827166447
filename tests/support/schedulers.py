"""The schedulers of diffusers that step from (model output, timestep, sample) and nothing else."""

import inspect

import diffusers

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
OF_OTHER_MODELS = {  # tokens, proteins, mixtures, a velocity of the other sign, or a config of one model's own
    "AmusedScheduler",
    "HeliosDMDScheduler",
    "HeliosScheduler",
    "MiniMaxH3Scheduler",
    "PiflowScheduler",
    "RFD4ProteinaScheduler",
    "SCMScheduler",
    "UnCLIPScheduler",
    "VQDiffusionScheduler",
}
REFUSED = {  # they do not show a step's noise level, or scale the network's output themselves
    "BlockRefinementScheduler",
    "CMStochasticIterativeScheduler",
    "DDPMWuerstchenScheduler",
    "DiscreteDDIMScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EntropyBoundScheduler",
    "IPNDMScheduler",
}
STOCHASTIC = {
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "LTXEulerAncestralRFScheduler",
    "SASolverScheduler",
    "TCDScheduler",
}


def _steps_plainly(name):
    try:
        parameters = inspect.signature(getattr(diffusers, name).step).parameters
    except (ImportError, AttributeError):  # needs a package that is not installed, or is no sampler
        return False
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return required == ["self", "model_output", "timestep", "sample"] and not name.endswith("InverseScheduler")


PLAIN = [name for name in sorted(dir(diffusers)) if name.endswith("Scheduler") and _steps_plainly(name)]
READ = [name for name in PLAIN if name not in OF_OTHER_MODELS | REFUSED]
DETERMINISTIC = [name for name in READ if name not in STOCHASTIC]


def new_scheduler(name, **options):
    """A scheduler with the noise schedule of Stable Diffusion, as far as it takes one."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    if "clip_sample" in known:
        options["clip_sample"] = False
    return cls(**{k: v for k, v in (BETAS | options).items() if k in known})
