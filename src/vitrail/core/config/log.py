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
    "model.part_left_out": "a part of a model exists and is not used: model, part, reason",
    "picture.composited": "a transparent picture is composited over a background: input, ground",
    "model.failed": "a part of a model raised: model, trace",
    "rectification.left_out": "sites that the network does not have are ignored: sites, network",
    "method.key_renamed": "a method has a key by its former name, which is read for one version more: key, now",
    "composition.resolved": "the method fits the model: digest, model, composition",
    "run.started": "a run begins: run_id, seed, num_inference_steps, height, width, model_calls",
    "run.resumed": "a run is resumed from its checkpoint: path, steps",
    "step.finished": "one step is done: step, timestep, stage, duration_ms, rows",
    "speeds.agreed": "ranks agree on the speeds by which they divide the work from this step on: step, speeds",
    "rows.chosen": "rows per forward, chosen by free memory: row_batch, need_bytes, free_bytes",
    "memory.short": "memory ran out, this forward and all later ones are split: step, rows, limit",
    "mask.degenerate": "a mask is degenerate and replaced by 1 everywhere: step, reason",
    "checkpoint.not_written": "a checkpoint cannot be written, the run continues: path, reason",
    "preview.not_written": "a preview cannot be made or written, the run continues: path, reason",
    "decode.replicated": "every rank decodes the whole picture: reason",
    "decode.short": "memory ran out, decoding is repeated in strips of fewer latent rows: rows, reason",
    "vae.overflowed": "a VAE's output is not finite and is computed again in float32: what, dtype",
    "serve.failed": "a picture of the page ended with an unexpected error: error, trace",
    "run.interrupted": "a run was asked to stop: step",
    "run.finished": "summary of a run: duration_s, predict_s, decode_s, steps, model_calls",
    "run.failed": "a run raised: error",
}


def logger() -> structlog.stdlib.BoundLogger:
    """Return the package's logger; structlog is imported on the first call, as that takes about 0.1 s."""
    import structlog

    wrapped: Any = structlog.wrap_logger(logging.getLogger("vitrail"), wrapper_class=structlog.stdlib.BoundLogger)
    return cast(structlog.stdlib.BoundLogger, wrapped)
