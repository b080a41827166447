"""Use a pipeline that you have loaded yourself, with its scheduler, its LoRAs and its offloading."""

from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from vitrail import Sampler
from vitrail.backbones import DEMO

pipe = StableDiffusionPipeline.from_pretrained(DEMO)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

sampler = Sampler.from_pipeline(pipe, method="multidiffusion")
result = sampler("a fox on a snow field", height=128, width=320, seed=7, num_inference_steps=12)
result.images[0].save("from_pipeline.png")
print(f"{result.report.model_calls} forwards of one view; the pipeline is left as it was found")
