"""Arguments and attributes that docstrings name exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SRC = Path(__file__).parents[1] / "src"


def named(docstring: str, section: str) -> list[str]:
    """The names in a section of a docstring: `name: ...` or `name, name: ...` on each line of its first indentation."""
    lines = docstring.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(f"{section}:")), None)
    if start is None:
        return []
    on_one_line = lines[start].partition(":")[2]
    if on_one_line:
        return re.findall(r"(?:^|;) ([a-z]\w*):", on_one_line)
    names = []
    for line in lines[start + 1 :]:
        if line and not line.startswith(" "):
            break
        if re.match(r" {4}\S", line):
            names += [name.strip(" *") for name in line.partition(":")[0].split(",")]
    return names


def members(node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> set[str]:
    """Names that a class body binds or its methods assign to self, including those of its bases in the package."""
    names = set()
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef):
            names.add(statement.name)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.add(statement.target.id)
        elif isinstance(statement, ast.Assign):
            names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store) and isinstance(child.value, ast.Name):
            names |= {child.attr} if child.value.id == "self" else set()
    for base in bases(node, classes):
        names |= members(base, classes)
    return names


def parameters(node: ast.ClassDef | ast.FunctionDef, classes: dict[str, list[ast.ClassDef]]) -> set[str]:
    """Parameters of a function, or of a class: those of its `__init__`, or its own and inherited fields."""
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        variadic = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
        named_arguments = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        return {argument.arg for argument in (*named_arguments, *variadic)}
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return parameters(statement, classes)
    fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
    names = {field.target.id for field in fields if isinstance(field.target, ast.Name)}
    for base in bases(node, classes):
        names |= parameters(base, classes)
    return names


def bases(node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> Iterator[ast.ClassDef]:
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        yield from (definition for definition in classes.get(name, []) if definition is not node)


def violations(sources: dict[str, str]) -> list[str]:
    """Names in docstrings that their class or function doesn't have, as `file: class: section: name`."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    classes: dict[str, list[ast.ClassDef]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    messages = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or not (docstring := ast.get_docstring(node)):
                continue
            existing = {"Args": parameters(node, classes)}
            if isinstance(node, ast.ClassDef):
                existing["Attributes"] = members(node, classes)
            for section, names in existing.items():
                wrong = [word for word in named(docstring, section) if word not in names]
                messages += [f"{name}: {node.name}: {section}: {word}" for word in wrong]
    return messages


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
