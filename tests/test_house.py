"""House rules that a reader relies on: option files load, recipes and README name what exists, files stay small."""
import re
import subprocess
from pathlib import Path

import pytest

from options.load import dump, load

ROOT = Path(__file__).resolve().parent.parent
OPTION_FILES = sorted((ROOT / "options").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
FOLDERS = ("options", "src", "datasets", "utils", "template", "tests")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", OPTION_FILES, ids=lambda p: p.stem)
def test_option_file_repeats_itself(path: Path, tmp_path: Path):
    """Every option file loads, and its fully resolved form is an option file that resolves to itself."""
    options = load(path, [])
    (tmp_path / "again.yaml").write_text(dump(options))
    assert dump(load(tmp_path / "again.yaml", [])) == dump(options)


@pytest.mark.parametrize("path", OPTION_FILES, ids=lambda p: p.stem)
def test_option_file_header(path: Path):
    """Every option file opens with a comment that says whether its numbers were measured."""
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert re.search("measured|not yet run", head, re.IGNORECASE), f"{path.name}: measured, or not yet run?"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_recipe(path: Path):
    """Every script parses, can be run, and names option files that exist."""
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.name == "common.sh" or path.stat().st_mode & 0o111
    for name in re.findall(r"options/\w+\.yaml", path.read_text()):
        assert (ROOT / name).is_file(), f"{path.name} names {name}"


def test_readme_names_what_exists():
    """Paths in the README exist, or are made by a run."""
    paths = r"(?:\./)?((?:scripts|options|utils|src|datasets|template|tests)/[\w./-]+\.\w+)"
    named = set(re.findall(paths, (ROOT / "README.md").read_text()))
    absent = {name for name in named if not (ROOT / name).is_file()}
    assert absent <= {"src/foo.py", "datasets/bar.py", "template/MANO_RIGHT.pkl", "template/MANO_RIGHT.npz"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_small_rooms(path: Path):
    """No source file exceeds 400 lines, and each opens with a docstring."""
    text = path.read_text()
    assert text.count("\n") <= 400
    assert text.lstrip().startswith('"""') or path.name in ("fill.py", "toy_mano.py", "make_tree.py")


def test_run_is_short():
    """run.py joins things and does nothing else: under 200 lines."""
    assert (ROOT / "run.py").read_text().count("\n") < 200
