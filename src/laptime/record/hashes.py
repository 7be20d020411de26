"""Hashes the settings that can change a run's results or timing. Runs with equal hashes are the same experiment."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from laptime.record.renamed import by_old_names


def config_hashes(hashed: Mapping[str, Any]) -> tuple[str, str]:
    """Return config_hash and group_hash: SHA-256 digests, cut to 16 hexadecimal digits. group_hash ignores the seed.

    Args:
        hashed: the settings that can change the results or the timing of a run, by full key.
    """
    return _digest(hashed), _digest({key: value for key, value in hashed.items() if key != "seed"})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(by_old_names(content), sort_keys=True).encode()).hexdigest()[:16]
