"""Trained models made ready for others: weights, adapter or GGUF, a model card, the hub."""
