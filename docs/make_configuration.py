"""Write docs/configuration.md: every group, option and key of conf/, with its comment.

python docs/make_configuration.py
"""

from pathlib import Path

from laptime.config.composition import config_dir
from laptime.config.foreign_keys import table
from laptime.config.schema import closed_groups

OUT = Path(__file__).with_name("configuration.md")
_HEAD = """# Configuration

All groups of `conf/`, their options, and the keys of each option with default and meaning. Choose an option with
`group=option`; change a key with `group.key=value`. `python train.py --cfg job` shows the configuration of a run.
`python docs/make_configuration.py` generates this page from the comments in `conf/`, and a test keeps it current.
"""

_COMING_FROM = """## Coming from Lightning, lightning-hydra-template or PyTorch

If you type a key of another tool, the error names Laptime's key, as text to copy. `--epochs 2` gets the same answer as
`epochs=2`. A key of your own with such a name stays yours.

    $ python train.py trainer.max_epochs=3
    error: trainer.max_epochs=3: Laptime calls it training.epochs. Type training.epochs=3.
"""


def page() -> str:
    """The whole page, as Markdown."""
    conf = config_dir()
    parts = [_HEAD, "## The root\n", _option(conf / "config.yaml")]
    closed = closed_groups()
    for folder in sorted(path for path in conf.iterdir() if path.is_dir() and path.name != "hydra"):
        kind = "The keys are fixed." if folder.name in closed else "The class that `_target_` names defines the keys."
        if folder.name in ("experiment", "search", "task"):
            kind = "Each option sets keys of other groups."
        paths = sorted(folder.glob("*.yaml"))
        parts.append(f"## `{folder.name}`\n\n{len(paths)} option{'s' if len(paths) > 1 else ''}. {kind}\n")
        if (common := conf / f"{folder.name}_base.yaml").exists():
            parts += [f"### Keys of every `{folder.name}`\n", _option(common)]
        for path in paths:
            parts += [f"### `{folder.name}={path.stem}`\n", _option(path)]
    return "\n".join([*parts, _COMING_FROM, table()]) + "\n"


def _option(path: Path) -> str:
    """The purpose of the file, and a row for each key that it sets."""
    about, rows, comment, is_head, skips = [], [], [], True, False
    content = path.read_text()
    sets_other_groups = "# @package _global_" in content
    for line in content.splitlines():
        text = line.strip()
        if not text:
            if is_head and comment:
                about, comment = comment, []
            is_head = False
            continue
        if text.startswith("#"):
            if not text.startswith("# @package"):
                comment.append(text.removeprefix("#").strip())
            continue
        key, _, value = text.partition(":")
        nested = line[0] in " -"
        describes_file = sets_other_groups or key in ("defaults", "_target_", "name", "{}")
        if is_head and comment and not about and describes_file:
            about, comment = comment, []
        is_head = False
        if not nested:
            skips = key in ("defaults", "hydra")
            if key == "defaults" and value.strip().startswith("["):
                parent = value.strip(" []")
                where = "in the table above" if parent.startswith("/") else f"those of `{path.parent.name}={parent}`"
                about = [*about, f"The other keys are {where}."]
        if skips or text == "{}" or text.startswith("- "):
            comment = []
            continue
        rows.append(
            (f"{'&nbsp;' * (len(line) - len(line.lstrip()))}`{key}`", value.partition(" #")[0].strip(), comment)
        )
        comment = []
    lines = [f"{paragraph}\n" for paragraph in _paragraphs(about)]
    if rows:
        lines += ["| key | default | meaning |", "|---|---|---|"]
        lines += [f"| {key} | {_code(value)} | {_cell(' '.join(_paragraphs(words)))} |" for key, value, words in rows]
        lines.append("")
    return "\n".join(lines)


def _paragraphs(comment: list[str]) -> list[str]:
    """The text of a comment. An empty line ends a paragraph; a command is a paragraph of its own, as code."""
    paragraphs: list[list[str]] = [[]]
    for line in comment:
        if line.startswith("python train.py "):
            paragraphs += [[f"`{line}`"], []]
        elif line:
            paragraphs[-1].append(line)
        else:
            paragraphs.append([])
    return [" ".join(lines) for lines in paragraphs if lines]


def _code(value: str) -> str:
    return f"`{_cell(value)}`" if value else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    OUT.write_text(page())
