"""Lines that workers write to standard error, shown on the driver's.

Ray would put a prefix before each, and a line would be no JSON any more.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

RAYS_OWN = "ray_print_logs"
OURS = "llamahome"
# Ray Serve reports each of its steps; its warnings are enough, but for one at every start.
OF_NO_INTEREST = re.compile(
    r"(DEBUG|INFO) \d{4}-\d\d-\d\d |WARNING .* -- Cannot deregister autoscaling state"
)


@contextmanager
def relayed_output(form: str) -> Iterator[None]:
    """Show the lines of this job's workers for the length of a `with` block, inside Ray's session.

    Args:
        form: `text` shows them as they are; `json` makes JSON of those that are not.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as streams

    def show(output: dict[str, Any]) -> None:
        if output["is_err"]:
            for line in output["lines"]:
                _show(line, form, output)

    streams.remove_handler(RAYS_OWN)
    streams.add_handler(OURS, show)
    try:
        yield
    finally:
        streams.remove_handler(OURS)


def _show(line: str, form: str, output: dict[str, Any]) -> None:
    if not line.strip() or OF_NO_INTEREST.match(line):
        return
    if form == "text" or line.startswith("{"):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    else:
        fields = {"worker": output.get("actor_name") or "", "pid": output.get("pid")}
        logger.warning("%s", line, extra=fields)
