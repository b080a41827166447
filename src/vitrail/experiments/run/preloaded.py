"""What the process that an experiment's ranks are copies of imports for all of them, with quiet libraries."""

import torch.distributed  # noqa: F401

import vitrail.experiments.run.cell_run
import vitrail.sampling.sampler  # noqa: F401
from vitrail.backbones.pipeline_backbone import quiet_libraries

quiet_libraries()
