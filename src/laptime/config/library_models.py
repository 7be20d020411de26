"""Finds the library that has a network of a name, without importing it, because that would load torch."""

import importlib.util
import re
from pathlib import Path

# Each has an option of its own in conf/model.
_LIBRARIES = ("torchvision", "timm")


def library_of(name: str) -> str | None:
    """Return torchvision or timm, if it is installed and has a network of this name: `resnet50`; otherwise None."""
    if not name.isidentifier():
        return None
    registered = re.compile(rf"^@register_model\b.*\n(?:@.*\n)*def {name}\(", re.MULTILINE)
    for library in _LIBRARIES:
        spec = importlib.util.find_spec(library)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            files = Path(folder, "models").glob("*.py")
            if any(registered.search(file.read_text(encoding="utf-8", errors="replace")) for file in files):
                return library
    return None
