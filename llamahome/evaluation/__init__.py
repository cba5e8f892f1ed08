"""Measuring what an eviction policy costs."""

from llamahome.evaluation.perplexity import Perplexity, perplexity, token_losses

__all__ = ["Perplexity", "perplexity", "token_losses"]
