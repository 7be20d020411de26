"""The hashes that tell whether two runs are the same, from what can change their results or their timing."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from laptime.record.renamed import by_old_names


def config_hashes(hashed: Mapping[str, Any]) -> tuple[str, str]:
    """(config_hash, group_hash) of all that can change a run's result or its timing, by full key, the latter blind to
    the seed: two hexadecimal SHA-256 digests, shortened to 16 digits."""
    return _digest(hashed), _digest({key: value for key, value in hashed.items() if key != "seed"})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(by_old_names(content), sort_keys=True).encode()).hexdigest()[:16]
