"""The sampling loop and its parts: micro-batches, guidance, ranks, state."""
