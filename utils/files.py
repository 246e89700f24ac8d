"""Files that are whole or absent: written beside their place, synced, then renamed.

Also the readers of small structured files, which turn every way of being broken into one InputError line.
"""
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from utils.errors import InputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, suffix: str = ".part") -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block ends well, remove it otherwise.

    suffix: of the temporary name, for writers that read the format off it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as indented json to `path` atomically; NaN is refused (json has none)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def require_file(path: str | os.PathLike, remedy: str) -> Path:
    """`path` if it is a file, else an InputError that ends with `remedy`."""
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe or a device" if path.exists() else "nothing"
        raise InputError(f"{path}: expected a file, found {found}; {remedy}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: expected a file that may be read, found one without permission; allow it: chmod +r")
    return path


def require_folder(path: str | os.PathLike, remedy: str) -> Path:
    """`path` if it is a folder, else an InputError that ends with `remedy`."""
    path = Path(path)
    if not path.is_dir():
        found = "a file" if path.is_file() else "nothing"
        raise InputError(f"{path}: expected a folder, found {found}; {remedy}")
    return path


def require_dataset(root: str | os.PathLike, title: str, signs: Sequence[str]) -> Path:
    """`root` if it is a folder that holds one of `signs`, by which a dataset is known; else an InputError with what is there."""
    root = require_folder(root, "link or unpack the dataset there, or set dataset.root")
    if not any((root / sign).exists() for sign in signs):
        there = sorted(path.name for path in root.iterdir())[:4]
        raise InputError(f"{root}: expected {title}'s folder, with {' or '.join(signs)}; found "
                         f"{', '.join(there) + ', ...' if there else 'nothing in it'}; set dataset.root to the right one")
    return root


def read_json(path: str | os.PathLike, remedy: str = "write it again") -> object:
    """Contents of a json file, or an InputError with the place of the fault."""
    path = require_file(path, remedy)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # text that is no json, no UTF-8, or an integer of thousands of digits
        raise InputError(f"{path}: expected json, found a file that breaks ({error}); {remedy}") from error


def read_yaml(path: str | os.PathLike, loader: type = yaml.SafeLoader, remedy: str = "mend or replace it") -> object:
    """Contents of a yml file read by a *safe* loader (yaml.SafeLoader or a subclass), or an InputError with the line."""
    if not issubclass(loader, (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
        raise TypeError(f"{loader.__name__} is not a safe yaml loader")
    path = require_file(path, remedy)
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, Loader=loader)  # noqa: S506  the loader is safe: checked above
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: expected yaml, found a file that breaks ({error}); {remedy}") from error


def sha256(path: str | os.PathLike) -> str:
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
