"""Compose a method of your own from strategies: the same words as in a method file."""

from vitrail import Composition, Sampler, Stage
from vitrail.plugins.fusion.averages import Gaussian
from vitrail.plugins.fusion.scatter import Scatter
from vitrail.plugins.guidance.structure import SyncGuidance
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.masking.up_block_attention import UpBlockAttention
from vitrail.plugins.patching.lattice import Lattice
from vitrail.plugins.patching.windows import Windows

structure = Stage(
    until=0.4,
    patching=Lattice(key="extra"),
    guidance=[SyncGuidance(scale=1.5, ramp="cosine")],
    masking=UpBlockAttention(ema=0.5),
    fusion=Scatter(),
)
detail = Stage(patching=Windows(overlap=0.5, jitter=True), masking=NoMask(), fusion=Gaussian(std=0.2))

sampler = Sampler.from_pretrained("demo", Composition(stages=[structure, detail]))
result = sampler("a fox on a snow field", height=256, width=256, seed=7, num_inference_steps=12)
result.images[0].save("compose.png")
