"""The logger and the closed list of event names.

A library stays silent below warnings until the application configures logging; only the command line does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import structlog

EVENTS = {
    "plugin.loaded": "a plugin was imported: plugin, distribution",
    "plugin.load_failed": "a plugin could not be imported: plugin, distribution, error",
    "model.part_left_out": "a part of a model is there and not used: model, part, reason",
    "picture.composited": "a transparent picture is laid on a ground: input, ground",
    "model.failed": "a part of a model raised: model, trace",
    "rectification.left_out": "places that a network does not have are not changed: sites, network",
    "method.key_renamed": "a method has a key by its former name, which is read for one version more: key, now",
    "composition.resolved": "strategies are chosen and fit: digest, model, composition",
    "run.started": "a run begins: run_id, seed, num_inference_steps, height, width, model_calls",
    "run.resumed": "a run goes on from its checkpoint: path, steps",
    "step.finished": "one step is done: step, timestep, stage, duration_ms, rows",
    "rows.chosen": "rows of a forward by the memory: row_batch, need_bytes, free_bytes",
    "memory.short": "a forward did not fit and is cut, as are all after it: step, rows, limit",
    "mask.degenerate": "a mask says nothing and is replaced by 1 everywhere: step, reason",
    "checkpoint.not_written": "a checkpoint cannot be written, and the run goes on: path, reason",
    "decode.replicated": "every rank decodes the whole picture: reason",
    "decode.short": "a decode did not fit and is done again in strips of fewer latent rows: rows, reason",
    "vae.overflowed": "a VAE's answer is not finite and is worked out again in float32: what, dtype",
    "run.interrupted": "a run was asked to stop: step",
    "run.finished": "the one line that sums a run up: duration_s, predict_s, decode_s, steps, model_calls",
    "run.failed": "a run raised: error",
}


def logger() -> structlog.stdlib.BoundLogger:
    """The package's logger; structlog takes a tenth of a second to import, so only who logs does."""
    import structlog

    wrapped: Any = structlog.wrap_logger(logging.getLogger("vitrail"), wrapper_class=structlog.stdlib.BoundLogger)
    return cast(structlog.stdlib.BoundLogger, wrapped)
