"""Conditioning of networks: texts, embeddings, control pictures."""
