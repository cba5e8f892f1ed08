"""What an eviction policy costs, measured through the slots that serve."""

from llamahome.evaluation.accuracy import Accuracy, accuracy
from llamahome.evaluation.memory import KVBytes
from llamahome.evaluation.perplexity import Perplexity, continuation_score, perplexity
from llamahome.evaluation.retrieval import Question, needles, recalls
from llamahome.evaluation.runner import Evaluation, Result, measured_policies, read_results

__all__ = [
    "Accuracy",
    "Evaluation",
    "KVBytes",
    "Perplexity",
    "Question",
    "Result",
    "accuracy",
    "continuation_score",
    "measured_policies",
    "needles",
    "perplexity",
    "read_results",
    "recalls",
]
