"""Evaluation: the cost of an eviction policy, measured through the engine that serves."""

from llamahome.evaluation.evaluation import Evaluation, Result, measured_policies
from llamahome.evaluation.reading import continuation_score, open_runner
from llamahome.evaluation.tasks.accuracy import Accuracy, accuracy
from llamahome.evaluation.tasks.perplexity import Perplexity, perplexity
from llamahome.evaluation.tasks.retrieval import Question, needles, recalls

__all__ = [
    "Accuracy",
    "Evaluation",
    "Perplexity",
    "Question",
    "Result",
    "accuracy",
    "continuation_score",
    "measured_policies",
    "needles",
    "open_runner",
    "perplexity",
    "recalls",
]
