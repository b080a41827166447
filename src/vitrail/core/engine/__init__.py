"""The sampling loop and what it runs on: micro-batches, guidance, ranks, state."""
