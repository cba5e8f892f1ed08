"""The repository that this package is part of, where it is not installed from a wheel."""

from __future__ import annotations

from pathlib import Path

from llamahome.config.checks import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "conf"  # in a checkout a link to the repository's conf/, in a wheel a copy


def checkout() -> Path:
    """Return the repository's root.

    Raises:
        ConfigError: for an installed package, which holds neither `train` nor `serve`.
    """
    root = PACKAGE.parent
    if not all((root / name / "__main__.py").is_file() for name in ("train", "serve")):
        raise ConfigError(
            "train/ and serve/ are part of the repository, not of the installed package; "
            "clone the repository and run `make install` there"
        )
    return root
