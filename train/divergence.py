"""Stops of a run whose numbers are no longer finite: the same steps would give the same again."""

from __future__ import annotations

import math
from pathlib import Path

import torch.distributed as dist

from train import checkpoint
from train.errors import DivergedError

SKIPPED_IN_A_ROW = 3


class DivergenceGuard:
    """The last finite step of a run.

    DeepSpeed leaves the weights as they are where a gradient is not finite. One such step may be an
    outlier; after `SKIPPED_IN_A_ROW` of them the run stands still.

    Args:
        skipped: steps that DeepSpeed had left out before.
    """

    def __init__(self, run_dir: Path, skipped: int) -> None:
        self.run_dir = run_dir
        self.skipped = skipped
        self.in_a_row = 0

    def after_step(self, step: int, loss: float, skipped: int) -> str | None:
        """Check a step and return a warning if DeepSpeed left it out.

        Args:
            step: its number, from 1.
            skipped: steps that DeepSpeed has left out by now.

        Raises:
            DivergedError: for a loss that is not finite, or too many steps left out in a row.
        """
        if not math.isfinite(loss):
            raise self._stop(step - self.in_a_row, f"the loss of step {step} is {loss}")
        self.in_a_row = self.in_a_row + 1 if skipped > self.skipped else 0
        self.skipped = skipped
        if self.in_a_row == SKIPPED_IN_A_ROW:
            raise self._stop(
                step - SKIPPED_IN_A_ROW + 1,
                f"the gradients of {SKIPPED_IN_A_ROW} steps up to {step} are not finite, so the "
                "weights stand still",
            )
        if self.in_a_row:
            return f"step {step}: the gradient is not finite, so the weights stay as they were"
        return None

    def after_evaluation(self, step: int, loss: float) -> None:
        """Check the held-out loss after `step` steps.

        Raises:
            DivergedError: for a loss that is not finite.
        """
        if not math.isfinite(loss):
            raise self._stop(
                step + 1 - self.in_a_row, f"the held-out loss after step {step} is {loss}"
            )

    def _stop(self, first_bad: int, reason: str) -> DivergedError:
        """Set aside the checkpoints whose next step is not finite, and name the one before."""
        good = None
        for path in checkpoint.checkpoints(self.run_dir):
            if checkpoint.steps_in(path) < first_bad - 1:
                good = path
                break
            if dist.get_rank() == 0:
                checkpoint.set_aside(path, "diverged")
        cure = "lower trainer.learning_rate or trainer.max_grad_norm in a new run"
        if good is None:
            return DivergedError(f"{reason}; {cure} (no checkpoint before that is good)")
        return DivergedError(
            f"{reason}; {cure}; trainer.run_name={self.run_dir.name} "
            f"trainer.steps={checkpoint.steps_in(good)} exports the last good checkpoint, {good}"
        )
