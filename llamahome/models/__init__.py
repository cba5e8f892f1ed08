"""Models by name: find, convert, download, verify, describe and load them.

Adapters are apart (`llamahome.models.adapters`): PEFT takes seconds to import.
"""

from llamahome.models.checksums import write_checksums
from llamahome.models.describe import ModelInfo
from llamahome.models.embedded import EMBEDDED_MODEL
from llamahome.models.errors import (
    ModelCorruptError,
    ModelError,
    ModelNotFoundError,
    PolicyFormatError,
)
from llamahome.models.fingerprint import fingerprint
from llamahome.models.load import FoundModel, LoadedModel, choose_policy, find_model, load_model
from llamahome.models.manager import ModelManager
from llamahome.models.policy_copy import copy_with_policy
from llamahome.models.policy_io import (
    read_adapter_policy,
    read_policy,
    write_adapter_policy,
    write_policy,
    write_policy_weights,
)

__all__ = [
    "EMBEDDED_MODEL",
    "FoundModel",
    "LoadedModel",
    "ModelCorruptError",
    "ModelError",
    "ModelInfo",
    "ModelManager",
    "ModelNotFoundError",
    "PolicyFormatError",
    "choose_policy",
    "copy_with_policy",
    "find_model",
    "fingerprint",
    "load_model",
    "read_adapter_policy",
    "read_policy",
    "write_adapter_policy",
    "write_checksums",
    "write_policy",
    "write_policy_weights",
]
