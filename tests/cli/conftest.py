"""What the tests of commands share."""

import os
import stat
import sys

import pytest


@pytest.fixture
def installed(tmp_path_factory, monkeypatch):
    """The folder, now in PATH, with the script `laptime` as pip writes it."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "laptime"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom laptime.cli import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder
