"""Hashes of the settings that can change the results or the timing of a run. Equal hashes: the same experiment."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from laptime.record.renamed import by_old_names


def config_hashes(hashed: Mapping[str, Any]) -> tuple[str, str]:
    """(config_hash, group_hash): SHA-256 digests, shortened to 16 hexadecimal digits. group_hash ignores the seed.

    Args:
        hashed: the settings that can change the results or the timing of a run, by full key.
    """
    return _digest(hashed), _digest({key: value for key, value in hashed.items() if key != "seed"})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(by_old_names(content), sort_keys=True).encode()).hexdigest()[:16]
