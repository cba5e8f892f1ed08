"""API keys in a file: only their SHA-256 is kept, and several processes may read and write it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from platformdirs import user_config_path

Role = Literal["user", "admin"]
ROLES: tuple[Role, ...] = ("user", "admin")
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
SECRET_BYTES = 32
PREFIX = "lh-"


class KeysError(ValueError):
    """A keys file, or a key in it, that cannot be used; the message names the cure."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One API key, without its secret.

    Attributes:
        id: short and unique; revoked by, and written to the audit log.
        name: chosen by the operator; one that is valid now is unique.
        sha256: of the secret, in hex. A secret has 256 random bits, so no salt or slow hash is
            needed: there is nothing to guess.
        role: an admin may also read /metrics and set `priority` below 0.
        created, expires, revoked: seconds since 1970; None is never.
        models: names that the key may use; None is every model.
        requests_per_minute, tokens_per_minute: its limits; None is no limit.
    """

    id: str
    name: str
    sha256: str
    role: Role = "user"
    created: int = 0
    expires: int | None = None
    revoked: int | None = None
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise KeysError(
                f"name={self.name!r} is not allowed: use 1 to 64 letters, digits and ._@-"
            )
        if self.role not in ROLES:
            raise KeysError(f"role={self.role!r} is not allowed: choose one of {', '.join(ROLES)}")
        for field in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, field)
            if limit is not None and not (isinstance(limit, int) and limit >= 1):
                raise KeysError(f"{field}={limit!r} is not allowed: it must be at least 1")
        if self.models is not None and not all(self.models):
            raise KeysError(f"models={','.join(self.models)!r} is not allowed: a name is empty")

    @property
    def admin(self) -> bool:
        return self.role == "admin"

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models

    def state(self, now: float) -> Literal["valid", "expired", "revoked"]:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


def digest(secret: str) -> str:
    """Return the SHA-256 of a key as the file holds it, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def default_file() -> Path:
    """Return the place of `llamahome keys` for a keys file; LLAMAHOME_KEYS_FILE names another."""
    named = os.environ.get("LLAMAHOME_KEYS_FILE")
    return Path(named) if named else user_config_path("llamahome") / "keys.json"


class KeyFile:
    """The keys in one file, mode 0600; each change is written whole, under a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Key, ...]:
        """Return the keys, revoked and expired ones included; a missing file has none.

        Raises:
            KeysError: for a file that others may write, or that is no keys file.
        """
        try:
            mode = self.path.stat().st_mode
            text = self.path.read_text()
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysError(f"{self.path} cannot be read: {error}") from error
        if mode & 0o022:
            raise KeysError(f"{self.path} can be written by others: chmod 600 it")
        try:
            return tuple(_key(entry) for entry in json.loads(text)["keys"])
        except (ValueError, TypeError, KeyError) as error:
            raise KeysError(
                f"{self.path} is no keys file ({error}); make one with: llamahome keys create"
            ) from error

    def create(self, name: str, **settings: Any) -> tuple[Key, str]:
        """Add a key and return it with its secret, which is kept nowhere.

        Args:
            settings: fields of `Key`.

        Raises:
            KeysError: for a setting that is out of range, or a name that is in use.
        """
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        now = int(time.time())
        key = Key(
            id=secrets.token_hex(4), name=name, sha256=digest(secret), created=now, **settings
        )
        with self._changed() as keys:
            if any(other.name == name and other.state(now) == "valid" for other in keys):
                raise KeysError(f"name={name!r} is in use: revoke that key, or choose another name")
            keys.append(key)
        return key, secret

    def revoke(self, which: str) -> Key:
        """Make the key of an id or a name invalid for ever, and return it.

        Raises:
            KeysError: when no key that is not revoked yet has that id or name.
        """
        with self._changed() as keys:
            now = time.time()
            named = [key for key in keys if which in (key.id, key.name) and key.revoked is None]
            if not named:
                raise KeysError(f"{which!r} names no key in {self.path}: see llamahome keys list")
            # A name may be an expired key's, too.
            chosen = min(named, key=lambda key: (key.id != which, key.state(now) != "valid"))
            revoked = replace(chosen, revoked=int(now))
            keys[keys.index(chosen)] = revoked
        return revoked

    @contextmanager
    def _changed(self) -> Iterator[list[Key]]:
        """Yield the keys to be changed, and write them back; nobody else writes meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock", mode=0o600):
            keys = list(self.read())
            yield keys
            self._write(keys)

    def _write(self, keys: list[Key]) -> None:
        text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n"
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w") as stream:  # mkstemp gives mode 0600
                stream.write(text)
                stream.flush()
                os.fsync(handle)
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _key(entry: dict[str, Any]) -> Key:
    models = entry.get("models")
    return Key(**{**entry, "models": None if models is None else tuple(models)})


class Keyring:
    """The keys that an endpoint accepts: those of a file as it is now, and one from the config.

    A file that has become unreadable has no keys: nobody is let in by mistake.

    Args:
        file: None has no keys.
        fixed: a key that is always valid, such as `serve.api_key`.
        report: called with the reason each time that the file becomes unreadable.
    """

    def __init__(
        self,
        file: KeyFile | None,
        fixed: Key | None = None,
        report: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._file = file
        self._fixed = fixed
        self._report = report
        self._stamp: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}

    def find(self, secret: str, now: float) -> Key | None:
        """Return the valid key of a secret.

        The time that a dictionary takes says something of hashes only, from which no secret can be
        built.
        """
        self._refresh()
        key = self._keys.get(digest(secret))
        return key if key is not None and key.state(now) == "valid" else None

    def _refresh(self) -> None:
        """Read the file again if it is another one or has changed."""
        stamp = None if self._file is None else _stamp(self._file.path)
        if stamp == self._stamp and self._keys:
            return
        known = [] if self._fixed is None else [self._fixed]
        try:
            known += [] if self._file is None else self._file.read()
        except KeysError as error:
            if stamp != self._stamp:
                self._report(str(error))
        self._keys = {key.sha256: key for key in known}
        self._stamp = stamp


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode)
