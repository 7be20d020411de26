"""`parse_only.py SCRIPT ARGUMENTS` runs a script until it has parsed its arguments. Exit code 3: it parses none."""

import argparse
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def exit_after(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parse_and_end(*arguments: Any, **named: Any) -> None:
        parse(*arguments, **named)
        sys.stdout.flush()
        os._exit(0)

    return parse_and_end


if __name__ == "__main__":
    for name in ("parse_args", "parse_intermixed_args"):
        setattr(argparse.ArgumentParser, name, exit_after(getattr(argparse.ArgumentParser, name)))
    script = Path(sys.argv[1])
    sys.argv[:] = sys.argv[1:]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
    sys.exit(3)
