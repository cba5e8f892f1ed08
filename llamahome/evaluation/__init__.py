"""Evaluation: the cost of an eviction policy, measured through the engine that serves."""

from llamahome.evaluation.evaluation import Evaluation
from llamahome.evaluation.measured import at_budget, measured_policies
from llamahome.evaluation.reading import continuation_score, open_runner
from llamahome.evaluation.results import Cell, Result
from llamahome.evaluation.tasks.accuracy import Accuracy, accuracy
from llamahome.evaluation.tasks.needles import needles
from llamahome.evaluation.tasks.perplexity import Perplexity, perplexity
from llamahome.evaluation.tasks.question import Question
from llamahome.evaluation.tasks.recalls import recalls

__all__ = [
    "Accuracy",
    "Cell",
    "Evaluation",
    "Perplexity",
    "Question",
    "Result",
    "accuracy",
    "at_budget",
    "continuation_score",
    "measured_policies",
    "needles",
    "open_runner",
    "perplexity",
    "recalls",
]
