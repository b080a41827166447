"""What networks are conditioned on: texts, embeddings, control pictures."""
