"""A pipeline with a LoRA and a ControlNet of your own; here both are untrained, for the model that ships inside."""

from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from peft import LoraConfig
from PIL import Image, ImageDraw

from vitrail import Sampler
from vitrail.backbones import DEMO

parts = StableDiffusionPipeline.from_pretrained(DEMO).components
edges = ControlNetModel.from_unet(parts["unet"])  # yours: ControlNetModel.from_pretrained("folder")
pipe = StableDiffusionControlNetPipeline(**parts, controlnet=edges, requires_safety_checker=False)
weak = LoraConfig(r=4, lora_alpha=0.2, target_modules=["to_q", "to_v"], init_lora_weights=False)
pipe.unet.add_adapter(weak, "mine")  # yours: pipe.load_lora_weights("folder")

hint = Image.new("RGB", (256, 256))  # lies on the whole picture; every view gets its part
ImageDraw.Draw(hint).ellipse((64, 64, 192, 192), outline="white", width=4)

sampler = Sampler.from_pipeline(pipe, method="asg-plus")
call = {"height": 256, "width": 256, "seed": 7, "num_inference_steps": 12, "control_image": hint}
result = sampler("a fox on a snow field", controlnet_conditioning_scale=0.8, control_guidance_end=0.5, **call)
result.images[0].save("your_pipeline.png")
print(f"{result.report.model_calls} forwards of one view, with the LoRA and the hint")
