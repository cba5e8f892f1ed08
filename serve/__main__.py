"""`python -m serve key=value ...`: compose conf/serve.yaml, check it, serve until stopped.

`python -m serve promote RUN` changes what a running endpoint serves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import hydra
import typer
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from yaml import YAMLError

from llamahome.config import ConfigError, ServeConfig, ServeRoot, explain_override, load_config
from llamahome.logs import configure_logging
from serve import promote
from serve.http.errors import EndpointError

# The base of conf/serve.yaml: only keys of the dataclasses can be overridden.
ConfigStore.instance().store(name="serve_root", node=ServeRoot)

EXAMPLE = """curl {url}/v1/chat/completions -H 'Content-Type: application/json' {key}\\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""


@hydra.main(version_base="1.3", config_path="../conf", config_name="serve")
def serve(config: DictConfig) -> None:
    configure_logging("INFO")
    try:
        _serve(load_config(config, ServeRoot))
    except ConfigError as error:  # here, since Hydra would add a line of its own above ours
        sys.exit(_fail(str(error), 2))
    except EndpointError as error:
        sys.exit(_fail(str(error), 1))


def _serve(root: ServeRoot) -> None:
    configure_logging(root.log.level or "INFO", root.log.format)
    # Imported after the config is checked: torch and Ray take seconds, and a typo should not.
    from serve.ray.endpoint import running_endpoint

    with running_endpoint(root) as endpoint, _stop_signals() as stop:
        ready = ready_text(
            endpoint.url, endpoint.model_id, endpoint.cores, with_key=_with_key(root.serve)
        )
        if root.serve.shows(root.serve.page):
            ready += f"\nor open {endpoint.url}/ in a browser"
        typer.echo(ready)
        stop.wait()
        typer.echo("stopping")


def _with_key(config: ServeConfig) -> bool:
    return bool(config.api_key) or config.keys_file is not None


def ready_text(url: str, model_id: str, cores: str, *, with_key: bool) -> str:
    key = '-H "Authorization: Bearer $LLAMAHOME_API_KEY" ' if with_key else ""
    example = EXAMPLE.format(url=url, model=model_id, key=key)
    return f"ready: {model_id} at {url}, on {cores} (Ctrl-C stops)\n{example}"


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets; a second signal interrupts the stopping."""
    stop = threading.Event()
    with contextlib.ExitStack() as before:

        def handler(*_: object) -> None:
            stop.set()
            before.close()

        for number in (signal.SIGINT, signal.SIGTERM):
            before.callback(signal.signal, number, signal.signal(number, handler))
        yield stop


def main() -> None:
    if sys.argv[1:2] == ["promote"]:
        promote.main(sys.argv[2:])
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors here
    try:
        serve()
    except (HydraException, YAMLError) as error:
        sys.exit(_fail(explain_override(error, ServeRoot), 2))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _fail(message: str, code: int) -> int:
    typer.echo(f"error: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
