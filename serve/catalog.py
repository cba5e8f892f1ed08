"""The models of one endpoint, by the names that clients know. Imports no torch.

A catalog never changes: another one, with a higher revision, takes its place. A request takes along
the entry that it is for, so replicas need no catalog, and an answer that moves to another replica
ends under the weights that it began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig, ServeRoot
from llamahome.config.checks import require

FINGERPRINT_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model as replicas load it.

    Attributes:
        name: the clients' name.
        root: the model behind the name, without its path; a promotion changes it.
        engine: its adapters included; each of them is a model to clients.
        revision: the catalog that brought it; it replaces an earlier one of this name.
    """

    name: str
    root: str
    model: ModelConfig = field(default_factory=ModelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    revision: int = 0

    @cached_property
    def key(self) -> str:
        """Name of what it computes, the same in every process."""
        described = repr((self.name, self.model, self.policy, self.engine, self.revision))
        return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: another one means other weights or another set-up."""
        return f"fp_{self.key[:FINGERPRINT_DIGITS]}"


@dataclass(frozen=True)
class Target:
    """The meaning of a client's name: a model, or one of its adapters."""

    served: Served
    adapter: str | None = None


@dataclass(frozen=True)
class Catalog:
    """All models of an endpoint; the first is the one that a request without a name gets."""

    models: tuple[Served, ...]
    _: KW_ONLY
    revision: int = 0

    @property
    def default(self) -> Served:
        return self.models[0]

    @property
    def names(self) -> list[str]:
        """Names of all models, each followed by its adapters."""
        return list(self._targets)

    def target(self, name: str) -> Target | None:
        """Return what a name stands for, or None for one that is not served."""
        return self._targets.get(name)

    @cached_property
    def _targets(self) -> dict[str, Target]:
        return dict(self._each())

    def _each(self) -> Iterator[tuple[str, Target]]:
        for served in self.models:
            yield served.name, Target(served)
            for adapter in served.engine.adapters:
                yield adapter, Target(served, adapter)

    def with_adapter(self, base: str, name: str, folder: Path) -> Catalog:
        """Return the next catalog, in which `base` has another adapter."""
        served = self._named(base)
        adapters = {**served.engine.adapters, name: str(folder)}
        return self._next(served, replace(served.engine, adapters=adapters))

    def without_adapter(self, name: str) -> Catalog:
        """Return the next catalog, in which an adapter is gone."""
        served = self._targets[name].served
        adapters = {other: at for other, at in served.engine.adapters.items() if other != name}
        return self._next(served, replace(served.engine, adapters=adapters))

    def promoted(self, name: str, root: str, model: ModelConfig) -> Catalog:
        """Return the next catalog, in which a name stands for another model."""
        served = self._named(name)
        return self._next(replace(served, root=root, model=model), served.engine)

    def _named(self, name: str) -> Served:
        return next(served for served in self.models if served.name == name)

    def _next(self, served: Served, engine: EngineConfig) -> Catalog:
        revision = self.revision + 1
        changed = replace(served, engine=engine, revision=revision)
        models = tuple(changed if m.name == served.name else m for m in self.models)
        return Catalog(models, revision=revision)


def first_catalog(root: ServeRoot) -> Catalog:
    """Return the catalog that a config asks for: `model` with its adapters, then `serve.models`.

    Raises:
        ConfigError: for a name that is there twice.
    """
    default = Served(
        name=served_name(root),
        root=served_name(root),
        model=root.model,
        policy=root.policy,
        engine=root.engine,
    )
    plain = replace(root.engine, adapters={})
    others = [
        Served(
            name=name,
            root=public_name(source),
            model=replace(root.model, name=source, revision=None),
            policy=root.policy,
            engine=plain,
        )
        for name, source in root.serve.models.items()
    ]
    catalog = Catalog((default, *others))
    own = [name for served in catalog.models for name in (served.name, *served.engine.adapters)]
    twice = next((name for name in own if own.count(name) > 1), None)
    require(
        twice is None,
        "serve.models",
        twice,
        "this name is also that of the model itself (serve.model_id) or one of engine.adapters",
    )
    return catalog


def served_name(root: ServeRoot) -> str:
    """Return the clients' name for the default model."""
    return public_name(root.model.name) if root.serve.model_id is None else root.serve.model_id


def public_name(model: str) -> str:
    """Return a model's name without its path; a local folder gives its last part."""
    folder = Path(model)
    return folder.resolve().name if folder.is_dir() else model
