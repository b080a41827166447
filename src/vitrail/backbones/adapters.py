"""The families of models and what each offers; light to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.backbones.loading.model_errors import model_blamed
from vitrail.backbones.loading.model_loader import load_pipeline
from vitrail.backbones.loading.source import ModelSource

if TYPE_CHECKING:
    from vitrail.backbones.model_family import ModelFamily
    from vitrail.backbones.pipeline_backbone import PipelineBackbone

UNET = frozenset(
    {
        "attention-maps",
        "compile",
        "convolutions",
        "cross-attention",
        "cross-attention-maps",
        "gradients",
        "self-attention",
        "unet-skips",
        "vae",
    }
)


@frozen(kw_only=True)
class Adapter:
    """What is known of a family before its weights are loaded."""

    pipelines: ClassVar[tuple[str, ...]]
    offers: ClassVar[frozenset[str]]
    defaults: ClassVar[Mapping[str, object]]
    source: ModelSource  # location of the weights; found by the model's name

    def load(self, device: str | None = None) -> PipelineBackbone:
        """Load the weights onto a device, with the model's defaults; raises as ``load_pipeline`` does."""
        with model_blamed(self.source.name, "cannot be loaded"):
            backbone = self.adopt(load_pipeline(self.source, device))
        backbone.defaults = self.suits
        return backbone

    def without_weights(self, device: str | None = None) -> tuple[PipelineBackbone, int]:
        """Return a backbone that plans and nothing else, and the bytes that its weights besides the network's have.

        Args:
            device: As in ``load``.

        Raises:
            ConfigError: If the device cannot be used.
            CapabilityError: If the pipeline cannot be sampled with.
            WeightsNeededError: If the model has to be loaded to know what it would do.
        """
        from vitrail.backbones.loading.unloaded import unloaded_pipeline

        pipe = unloaded_pipeline(self.source, device)
        backbone = self.adopt(pipe)
        backbone.defaults = self.suits
        return backbone, pipe.unloaded_bytes

    @property
    def suits(self) -> dict[str, object]:
        """Fields of a run that suit the model; its folder takes precedence over its family."""
        return {**self.defaults, **self.source.suits}

    @classmethod
    def adopt(cls, pipe: object) -> PipelineBackbone:
        """Return a backbone of a loaded pipeline."""
        from vitrail.backbones.pipeline_backbone import PipelineBackbone

        return PipelineBackbone(pipe, cls.family(), cls.offers, cls.defaults)

    @classmethod
    def family(cls) -> ModelFamily:
        """Return the architecture-specific part of its pipelines.

        Raises:
            NotImplementedError: In this base class.
        """
        raise NotImplementedError


@frozen(kw_only=True)
class StableDiffusion(Adapter):
    """Stable Diffusion 1.x and 2.x: epsilon and velocity prediction."""

    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
    )
    offers: ClassVar[frozenset[str]] = UNET
    defaults: ClassVar[Mapping[str, object]] = {"height": 1024, "width": 1024, "guidance_scale": 7.5}

    @classmethod
    def family(cls) -> ModelFamily:
        """Return the U-Net family without XL's conditioning."""
        from vitrail.backbones.unet_family import UNetFamily

        return UNetFamily(is_xl=False)


@frozen(kw_only=True)
class StableDiffusionXL(Adapter):
    """Stable Diffusion XL: two text encoders, pooled text, size conditioning."""

    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
    )
    offers: ClassVar[frozenset[str]] = UNET
    defaults: ClassVar[Mapping[str, object]] = {"height": 2048, "width": 2048, "guidance_scale": 7.5}

    @classmethod
    def family(cls) -> ModelFamily:
        """Return the U-Net family with XL's conditioning."""
        from vitrail.backbones.unet_family import UNetFamily

        return UNetFamily(is_xl=True)


@frozen(kw_only=True)
class StableDiffusion3(Adapter):
    """Stable Diffusion 3: a transformer with joint attention, flow matching, 16 latent channels."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    offers: ClassVar[frozenset[str]] = frozenset(
        {"attention-maps", "compile", "gradients", "joint-attention-maps", "vae"}
    )
    defaults: ClassVar[Mapping[str, object]] = {"height": 2048, "width": 2048, "guidance_scale": 7.0}

    @classmethod
    def family(cls) -> ModelFamily:
        """Return the family of Stable Diffusion 3."""
        from vitrail.backbones.sd3_family import SD3Family

        return SD3Family()


ADAPTERS: Mapping[str, type[Adapter]] = {  # by registered name
    "sd": StableDiffusion,
    "sdxl": StableDiffusionXL,
    "sd3": StableDiffusion3,
}
