"""Who may import whom (run.py -> options -> src | datasets -> utils), and other rules that the syntax tree can check."""
import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "utils": {"utils"},
    "src": {"src", "utils"},
    "datasets": {"datasets", "utils"},
    "options": {"options", "src", "datasets", "utils"},
    "run.py": {"options", "src", "datasets", "utils"},
}
OURS = {"utils", "src", "datasets", "options", "run", "template", "tests", "scripts"}
ROOMS = ("utils", "src", "datasets", "options")
FILES = [ROOT / "run.py"] + sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MAY_PRINT = {"run.py"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """(module, level) of every import anywhere in a file, also inside functions and by importlib with a fixed name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(name.name, 0) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level))
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "importlib.import_module", "__import__"):
            found += [(arg.value, 0) for arg in node.args if isinstance(arg, ast.Constant)]
    return found


def called(node: ast.Call) -> str:
    """Dotted name of what is called, as far as it is names."""
    return ast.unparse(node.func) if isinstance(node.func, (ast.Name, ast.Attribute)) else ""


def faults(tree: ast.AST, name: str) -> list[str]:
    """Lines of a file that break a rule, with the rule."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called(node) == "print" and name not in MAY_PRINT:
                found.append(f"{node.lineno}: print outside run.py")
            if called(node) == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if called(node) in ("pickle.load", "pickle.loads", "eval", "exec", "yaml.unsafe_load", "yaml.full_load"):
                found.append(f"{node.lineno}: {called(node)} runs what it reads")
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "BaseException"):
            found.append(f"{node.lineno}: bare except")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 80:
            found.append(f"{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_rule(path):
    """src and datasets never see each other, utils sees only itself, imports are absolute."""
    room = room_of(path)
    for module, level in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert level == 0, f"{path.name}: relative import of {module or '.'}"
        top = module.split(".")[0]
        assert top not in OURS or top in MAY_IMPORT[room], f"{room} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_house_rules(path):
    """No print outside run.py, no bare except, nothing read is run, functions within the hard limit of 80 lines."""
    assert faults(ast.parse(path.read_text(encoding="utf-8")), path.name) == []


def test_the_rules_catch_what_they_are_for():
    """Each rule fires on a line that breaks it."""
    bad = ("import torch, pickle\nfrom . import x\nimport datasets.reader\n"
           "def f():\n    try:\n        print(torch.load('a'))\n    except:\n        pickle.loads(b'')\n")
    tree = ast.parse(bad)
    assert ("", 1) in imports(tree) and ("datasets.reader", 0) in imports(tree)
    fired = {fault.split(": ")[1].split()[0] for fault in faults(tree, "x.py")}
    assert fired == {"print", "torch.load", "bare", "pickle.loads"}
    assert imports(ast.parse("importlib.import_module('src.engine')")) == [("src.engine", 0)]
    assert "has 81 lines" in faults(ast.parse("def f():\n" + "    pass\n" * 80), "x.py")[0]


def test_rooms_are_found():
    """The walk sees every room, and no room shadows or is shadowed by an installed package."""
    assert {room_of(path) for path in FILES} == set(MAY_IMPORT)
    for room in ROOMS:
        __import__(room)
        assert Path(sys.modules[room].__file__).parent == ROOT / room
