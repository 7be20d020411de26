"""Docstrings name arguments and attributes that there are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SRC = Path(__file__).parents[1] / "src"


def named(docstring: str, section: str) -> list[str]:
    """The names of a section, `name: ...` or `name, name: ...` on each line of its first indentation."""
    lines = docstring.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(f"{section}:")), None)
    if start is None:
        return []
    on_one_line = lines[start].partition(":")[2]
    if on_one_line:
        return re.findall(r"(?:^|;) ([a-z]\w*):", on_one_line)
    found = []
    for line in lines[start + 1 :]:
        if line and not line.startswith(" "):
            break
        if re.match(r" {4}\S", line):
            found += [name.strip(" *") for name in line.partition(":")[0].split(",")]
    return found


def members(node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> set[str]:
    """What the class body binds, what its methods assign to self, and the same of its bases in the package."""
    found = set()
    for each in node.body:
        if isinstance(each, ast.FunctionDef):
            found.add(each.name)
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            found.add(each.target.id)
        elif isinstance(each, ast.Assign):
            found |= {target.id for target in each.targets if isinstance(target, ast.Name)}
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and isinstance(each.value, ast.Name):
            found |= {each.attr} if each.value.id == "self" else set()
    for base in bases(node, classes):
        found |= members(base, classes)
    return found


def parameters(node: ast.ClassDef | ast.FunctionDef, classes: dict[str, list[ast.ClassDef]]) -> set[str]:
    """Of a function, or of what makes a class: its `__init__`, else its fields; of its bases where it has none."""
    if isinstance(node, ast.FunctionDef):
        given = node.args
        many = [each for each in (given.vararg, given.kwarg) if each is not None]
        return {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, *many)}
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return parameters(each, classes)
    found = {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    for base in bases(node, classes):
        found |= parameters(base, classes)
    return found


def bases(node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> Iterator[ast.ClassDef]:
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        yield from (each for each in classes.get(name, []) if each is not node)


def violations(sources: dict[str, str]) -> list[str]:
    """Each name in a docstring that its class or function does not have, as `file: class: section: name`."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    classes: dict[str, list[ast.ClassDef]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or not (docstring := ast.get_docstring(node)):
                continue
            wrong = [("Args", each) for each in named(docstring, "Args") if each not in parameters(node, classes)]
            if isinstance(node, ast.ClassDef):
                own = members(node, classes)
                wrong += [("Attributes", each) for each in named(docstring, "Attributes") if each not in own]
            found += [f"{name}: {node.name}: {section}: {each}" for section, each in wrong]
    return found


def test_docstrings_name_existing_arguments_and_attributes():
    assert violations({str(path.relative_to(SRC)): path.read_text() for path in SRC.rglob("*.py")}) == []


WRONG = '''
class Base:
    """A base.

    Attributes:
        shape: there.
        size: nowhere.
    """
    shape = (1, 2)

class Derived(Base):
    """One.

    Args:
        first, second: of both
            lines: of this text.
        third: nowhere.

    Attributes:
        shape, made: inherited; and assigned.
    """
    def __init__(self, first, *, second):
        self.made = first

def function(one):
    """Args: one: this; other: nowhere."""
'''


def test_wrong_names_in_docstrings_are_found():
    assert violations({"wrong.py": WRONG}) == [
        "wrong.py: Base: Attributes: size",
        "wrong.py: Derived: Args: third",
        "wrong.py: function: Args: other",
    ]
