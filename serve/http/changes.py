"""Changes of the models while an endpoint serves: adapters come and go, a run is promoted.

A change is loaded by every replica first, so it is refused if one cannot have it, and no request
waits for it. Then all ingress processes send new requests to it, and answers in progress end where
they began. At last the replicas drop what nobody uses any more.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamahome.config import ModelConfig, ServeRoot
from llamahome.config.cache_folder import cache_folder
from serve.catalog import Catalog, Served, public_name
from serve.http.errors import ApiError, invalid_request, no_model

ADAPTER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
ATTEMPTS = 5


class CatalogStore(Protocol):
    """The catalog that every process of an endpoint shares."""

    settle_s: float

    @property
    def catalog(self) -> Catalog:
        """The latest catalog, as far as it is known here."""

    async def put(self, catalog: Catalog) -> bool:
        """Make a catalog the latest; return False where another one came first."""


class Holder(Protocol):
    """The replicas, as far as they load and drop models."""

    async def hold(self, served: Served) -> str | None:
        """Load a model in every replica; return the first reason why one cannot, or None."""

    async def retire(self, name: str, revision: int) -> None:
        """Drop older versions of a model in every replica, once they are idle."""


class LocalCatalog:
    """The catalog of an endpoint in one process."""

    settle_s = 0.0

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    async def put(self, catalog: Catalog) -> bool:
        if catalog.revision != self.catalog.revision + 1:
            return False
        self.catalog = catalog
        return True


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Places from which models may be loaded while an endpoint serves.

    Attributes:
        runs: folder of finished runs, each known by its name.
        folders: folders below which a model or an adapter may lie (serve.model_dirs).
        configured: models of the endpoint's config, by name, to which a promotion may return.
    """

    runs: Path
    folders: tuple[Path, ...] = ()
    configured: dict[str, ModelConfig] | None = None

    @classmethod
    def of(cls, root: ServeRoot, catalog: Catalog) -> Sources:
        """Return the sources of a config, of which `catalog` is the first."""
        return cls(
            runs=cache_folder() / "runs",
            folders=tuple(Path(folder).expanduser().resolve() for folder in root.serve.model_dirs),
            configured={served.root: served.model for served in catalog.models},
        )

    def model(self, source: str, field: str) -> tuple[str, ModelConfig]:
        """Return the public name and the place of a model.

        Raises:
            ApiError: for a source outside these places, or one that holds no model.
        """
        configured = (self.configured or {}).get(source)
        if configured is not None:
            return source, configured
        folder = self.folder(source, field)
        if not any((folder / name).is_file() for name in (MODEL_CONFIG, ADAPTER_CONFIG)):
            raise invalid_request(f"{field}: no finished model lies there", field)
        name = source if RUN_NAME.fullmatch(source) else public_name(str(folder))
        return name, ModelConfig(name=str(folder))

    def folder(self, source: str, field: str) -> Path:
        """Return the folder of a run's model, or one below the allowed folders, links resolved."""
        run = self.runs / source / "model"
        if RUN_NAME.fullmatch(source) and run.is_dir():
            return run
        folder = Path(source)
        found = folder.resolve()
        allowed = any(found.is_relative_to(root) for root in (self.runs, *self.folders))
        if folder.is_absolute() and allowed and found.is_dir():
            return found
        raise invalid_request(
            f"{field}: give the name of a finished run, or the absolute path of a folder below "
            "serve.model_dirs",
            field,
        )


class Changes:
    """The changes that an admin may make."""

    def __init__(self, store: CatalogStore, replicas: Holder, sources: Sources) -> None:
        self._store = store
        self._replicas = replicas
        self._sources = sources

    async def load_adapter(self, name: str, path: str, base: str | None = None) -> None:
        """Serve a LoRA adapter of a model under a name of its own.

        Raises:
            ApiError: for a name that is taken, a path that is not allowed, or an adapter that does
                not fit the model or its policy; then nothing has changed.
        """
        if not ADAPTER_NAME.fullmatch(name):
            raise invalid_request("lora_name: use 1 to 64 letters, digits, - and _", "lora_name")
        folder = self._sources.folder(path, "lora_path")
        if not (folder / ADAPTER_CONFIG).is_file():
            raise invalid_request(f"lora_path: it holds no {ADAPTER_CONFIG}", "lora_path")

        def changed(catalog: Catalog) -> tuple[str, Catalog]:
            if catalog.target(name) is not None:
                raise invalid_request(f"lora_name: {name!r} is served already", "lora_name")
            model = _base(catalog, base)
            return model, catalog.with_adapter(model, name, folder)

        await self._change(changed, "lora_path")

    async def unload_adapter(self, name: str) -> None:
        """Serve an adapter no more; answers in progress end with it.

        Raises:
            ApiError: 404 for a name that is no adapter's.
        """

        def changed(catalog: Catalog) -> tuple[str, Catalog]:
            target = catalog.target(name)
            if target is None or target.adapter is None:
                adapters = [n for n in catalog.names if _is_adapter(catalog, n)]
                raise replace_param(no_model(name, adapters), "lora_name")
            return target.served.name, catalog.without_adapter(name)

        await self._change(changed, "lora_name")

    async def promote(self, source: str, name: str | None = None) -> Served:
        """Let a name stand for another model from now on; return what it stands for.

        Args:
            source: a run, a folder or a configured model, see `Sources.model`.
            name: a served model's; None is the default one.

        Raises:
            ApiError: for a source that cannot be had or served; then nothing has changed.
        """
        root, model = self._sources.model(source, "run")

        def changed(catalog: Catalog) -> tuple[str, Catalog]:
            base = _base(catalog, name)
            served = catalog.target(base)
            if served is not None and served.served.engine.adapters:
                adapters = ", ".join(served.served.engine.adapters)
                raise invalid_request(
                    f"model: {base!r} has adapters ({adapters}), which are for its present "
                    "weights; unload them first",
                    "model",
                )
            return base, catalog.promoted(base, root, model)

        return await self._change(changed, "run")

    async def _change(
        self, changed: Callable[[Catalog], tuple[str, Catalog]], field: str
    ) -> Served:
        for _ in range(ATTEMPTS):
            name, catalog = changed(self._store.catalog)
            served = next(served for served in catalog.models if served.name == name)
            if (reason := await self._replicas.hold(served)) is not None:
                raise invalid_request(f"{field}: {reason}", field)
            if await self._store.put(catalog):
                # Every ingress process has seen it by then, so no request asks for the old one.
                await asyncio.sleep(self._store.settle_s)
                await self._replicas.retire(name, served.revision)
                return served
        raise ApiError(409, "other changes came first, again and again; try again", code="conflict")


def _base(catalog: Catalog, name: str | None) -> str:
    """Return the name of a model that is no adapter; None is the default one."""
    if name is None:
        return catalog.default.name
    if name not in (models := [served.name for served in catalog.models]):
        raise no_model(name, models)
    return name


def _is_adapter(catalog: Catalog, name: str) -> bool:
    target = catalog.target(name)
    return target is not None and target.adapter is not None


def replace_param(error: ApiError, param: str) -> ApiError:
    """Return an error that names another field."""
    return ApiError(error.status, error.message, param=param, code=error.code)
