"""Modules that the fork server imports once for all rank processes of an experiment."""

import torch.distributed  # noqa: F401

import vitrail.experiments.run.cell_run
import vitrail.sampling.sampler  # noqa: F401
from vitrail.backbones.pipeline_backbone import quiet_libraries

quiet_libraries()
