"""What an eviction policy costs, measured through the slots that serve."""

from llamahome.evaluation.evaluation import Evaluation, Result, measured_policies, read_results
from llamahome.evaluation.memory import KVBytes
from llamahome.evaluation.tasks.accuracy import Accuracy, accuracy
from llamahome.evaluation.tasks.perplexity import Perplexity, continuation_score, perplexity
from llamahome.evaluation.tasks.retrieval import Question, needles, recalls

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
