"""One catalog for all processes of an endpoint, kept by Ray's head as long as it lives.

Ray's internal key-value store is where Ray Serve keeps its own state. A revision is written once,
under a key of its own, so of two changes at the same time one fails and is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading

from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)

from serve.catalog import Catalog

logger = logging.getLogger(__name__)

NAMESPACE = "llamahome-models"
POLL_S = 0.25


class SharedCatalog:
    """The latest catalog, followed by a thread of this process.

    A thread, so that a busy event loop does not make it late.
    """

    settle_s = 3 * POLL_S

    def __init__(self, first: Catalog) -> None:
        self._catalog = latest(first)
        self._stopped = threading.Event()
        threading.Thread(target=self._follow, name="catalog", daemon=True).start()

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    async def put(self, catalog: Catalog) -> bool:
        """Make a catalog the latest; return False where another one came first."""
        written = await asyncio.to_thread(_put, catalog)
        self._catalog = await asyncio.to_thread(latest, self._catalog)
        return written

    def close(self) -> None:
        self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_S):
            try:
                self._catalog = latest(self._catalog)
            except Exception as error:  # noqa: BLE001 - Ray's head may be away for a while
                logger.warning("the catalog of models cannot be read: %s", error)


def latest(catalog: Catalog) -> Catalog:
    """Return the latest catalog that has followed on one."""
    while (packed := _internal_kv_get(_key(catalog.revision + 1), namespace=NAMESPACE)) is not None:
        catalog = pickle.loads(packed)  # our own, from the cluster that runs this code
    return catalog


def forget_catalogs() -> None:
    """Drop what an earlier endpoint on this Ray has left."""
    _internal_kv_del("", del_by_prefix=True, namespace=NAMESPACE)


def _put(catalog: Catalog) -> bool:
    taken = _internal_kv_put(
        _key(catalog.revision), pickle.dumps(catalog), overwrite=False, namespace=NAMESPACE
    )
    return not taken


def _key(revision: int) -> str:
    return f"{revision:08d}"
