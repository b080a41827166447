"""Look inside a run: a plugin that wraps a stage sees what goes in and what comes out."""

from vitrail import Sampler, hookimpl


class Pull:
    """How far guidance moves the views' predicted clean latents, step by step."""

    def __init__(self):
        self.moved = {}

    @hookimpl(wrapper=True)
    def vitrail_guide(self, step, subject):
        guided, state = yield
        self.moved[step.index] = float((guided.clean - subject.clean).abs().mean())
        return guided, state  # handed on unchanged: the picture is the same to the bit


pull = Pull()
sampler = Sampler.from_pretrained("demo", method="asg-plus", plugins=[("pull", pull)])
result = sampler("a fox on a snow field", height=256, width=256, seed=7, num_inference_steps=12)
result.images[0].save("observe.png")
for index, moved in pull.moved.items():
    print(f"step {index}: moved by {moved:.3f}")
