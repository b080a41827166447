"""The built-in strategies, registered as any plugin registers."""

from __future__ import annotations

from pathlib import Path

from vitrail.core.config.registry import Registry
from vitrail.core.method.hookspecs import hookimpl
from vitrail.core.method.stage import SharedPrompt
from vitrail.plugins.fusion.averages import Average, Gaussian
from vitrail.plugins.fusion.broadcast import Broadcast
from vitrail.plugins.fusion.paste import Paste
from vitrail.plugins.fusion.scatter import Scatter
from vitrail.plugins.guidance.anchored import Anchored
from vitrail.plugins.guidance.attentive import Attentive
from vitrail.plugins.guidance.direction import Direction
from vitrail.plugins.guidance.interpolated import Interpolated
from vitrail.plugins.guidance.noise_damped import NoiseDamped
from vitrail.plugins.guidance.none import NoGuidance
from vitrail.plugins.guidance.skip_residual import SkipResidual
from vitrail.plugins.guidance.structure import AsyncGuidance, SyncGuidance
from vitrail.plugins.guidance.synchronized import Synchronized
from vitrail.plugins.guidance.upsample import UpsampleGuidance
from vitrail.plugins.guidance.wavelet import Wavelet
from vitrail.plugins.masking.attention import PromptAttention
from vitrail.plugins.masking.joint_attention import JointAttention
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.masking.pfsa import ParameterFreeAttention
from vitrail.plugins.masking.remembered_attention import RememberedAttention
from vitrail.plugins.masking.up_block_attention import UpBlockAttention
from vitrail.plugins.patching.dilated import Dilated
from vitrail.plugins.patching.lattice import Lattice
from vitrail.plugins.patching.whole import Whole
from vitrail.plugins.patching.windows import Windows
from vitrail.plugins.prompting.patch_content_aware import PatchContentAware
from vitrail.plugins.upscaler.lanczos import Lanczos
from vitrail.plugins.upscaler.rrdbnet import RRDBNet

METHODS = Path(__file__).parent / "methods"


@hookimpl
def vitrail_register(registry: Registry) -> None:
    """Add the built-ins."""
    registry.add("patching", "whole", Whole)
    registry.add("patching", "windows", Windows)
    registry.add("patching", "lattice", Lattice)
    registry.add("patching", "dilated", Dilated)
    registry.add("guidance", "none", NoGuidance)
    registry.add("guidance", "sync", SyncGuidance)
    registry.add("guidance", "async", AsyncGuidance)
    registry.add("guidance", "interpolated", Interpolated)
    registry.add("guidance", "anchored", Anchored)
    registry.add("guidance", "skip-residual", SkipResidual)
    registry.add("guidance", "attentive", Attentive)
    registry.add("guidance", "wavelet", Wavelet)
    registry.add("guidance", "noise-damped", NoiseDamped)
    registry.add("guidance", "upsample", UpsampleGuidance)
    registry.add("guidance", "synchronized", Synchronized)
    registry.add("guidance", "direction", Direction)
    registry.add("masking", "none", NoMask)
    registry.add("masking", "attention", PromptAttention)
    registry.add("masking", "up-block-attention", UpBlockAttention)
    registry.add("masking", "joint-attention", JointAttention)
    registry.add("masking", "pfsa", ParameterFreeAttention)
    registry.add("masking", "remembered-attention", RememberedAttention)
    registry.add("fusion", "average", Average)
    registry.add("fusion", "gaussian", Gaussian)
    registry.add("fusion", "scatter", Scatter)
    registry.add("fusion", "broadcast", Broadcast)
    registry.add("fusion", "paste", Paste)
    registry.add("prompting", "shared", SharedPrompt)
    registry.add("prompting", "patch-content-aware", PatchContentAware)
    registry.add("upscaler", "lanczos", Lanczos)
    registry.add("upscaler", "rrdbnet", RRDBNet)
    for path in sorted(METHODS.glob("*.toml")):
        registry.add_file("methods", path.stem, path)
