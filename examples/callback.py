"""A callback in diffusers' form: watch the latents, replace them, or stop early."""

from vitrail import Sampler


def stop_when_settled(sampler, step, timestep, callback_kwargs):
    latents = callback_kwargs["latents"]
    print(f"step {step}, timestep {timestep:.0f}: latents of size {latents.std():.2f}")
    if step == 9:
        sampler.interrupt()  # the picture shows the prediction so far
    return {"latents": latents}


sampler = Sampler.from_pretrained("demo", method="cutdiffusion")
call = {"height": 256, "width": 256, "seed": 7, "num_inference_steps": 12}
result = sampler("a fox on a snow field", callback_on_step_end=stop_when_settled, **call)
result.images[0].save("callback.png")
print(f"interrupted: {result.report.interrupted}, steps: {result.report.steps}")
