"""Reads an option file: single inheritance, overrides, and one clear line for whatever is wrong in it.

`load(path, ["train.lr=3e-4"])` -> Options. A file may name another as `base:` (relative to itself); its own keys are laid over
the base's, section by section. A section that names another method or dataset (`name:`) starts empty, because the options of the
one mean nothing to the other; the run's own `name` is never inherited, and is the file's name where it is not given.

The yaml is read by YAML 1.2's rules for plain words, by a safe loader: `1e-3` is a number, `off` and `no` are words and not
false, dates stay words; a key given twice, anchors and infinite numbers are refused. `dump` writes what these rules read back.
"""
import difflib
import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from options.schema import Options
from utils.errors import InputError
from utils.files import read_yaml
from utils.strict import ROOT, modules

PACKAGES = {"method": "src", "dataset": "datasets", "synth": "datasets.synthetic"}  # of the sections that `name` a module
COMMAND_LINE = "command line"
Origins = dict[tuple[str, ...], str]  # key path -> the file (or command line) that set it

_FLOAT = re.compile(r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$")
_PLAIN_WORDS = (
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), "-+0123456789"),
    ("tag:yaml.org,2002:float", _FLOAT, "-+0123456789."),
)


class OptionLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain words, without anchors, double keys and infinities."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors (& and *) are not read here; use base:", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key.value}` is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value} is not a finite number", node.start_mark)
        return value


class OptionDumper(yaml.SafeDumper):
    """SafeDumper that also quotes the words which only OptionLoader takes for something else, e.g. '1e-3'."""


OptionLoader.add_constructor("tag:yaml.org,2002:float", OptionLoader.construct_yaml_float)
for _tag, _pattern, _first in _PLAIN_WORDS:
    OptionLoader.add_implicit_resolver(_tag, _pattern, list(_first))
    OptionDumper.add_implicit_resolver(_tag, _pattern, list(_first))


def load(path: str | Path | None, overrides: Sequence[str] = (), section: str = "") -> Options:
    """The option file at `path`, its bases under it and `overrides` ("a.b=c", c in yaml) over it, checked.

    Without a file, the options are the overrides alone, and `key=value` is of the command's `section` where that has the key.
    Raises InputError with one line: the file (or the command line), key path, value, what is allowed, the nearest known key.
    """
    if path is None:
        overrides = [_in_section(item, section) for item in overrides]
    tree, origins = read_tree(None if path is None else Path(path), overrides, section)
    try:
        return Options.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error, origins, tree)) from error


def dump(options: Options) -> str:
    """All of `options` as yaml, which is itself an option file that repeats the run."""
    return yaml.dump(options.model_dump(mode="json"), Dumper=OptionDumper, sort_keys=False, allow_unicode=True, width=120)


def read_tree(path: Path | None, overrides: Sequence[str] = (), section: str = "") -> tuple[dict[str, Any], Origins]:
    """The merged, unchecked option tree, and for each key the file that set it."""
    tree: dict[str, Any] = {}
    origins: Origins = {}
    for file, content in reversed(_chain(path) if path else []):
        tree.pop("name", None)
        _merge(tree, content, origins, str(file))
    tree.setdefault("name", path.stem if path else section)
    # A new `method.name` empties its section, so it goes before the section's other overrides wherever it stands.
    for item in sorted(map(_override, overrides), key=lambda keys_value: keys_value[0][-1] != "name"):
        _set(tree, *item, origins)
    return tree, origins


def _in_section(item: str, section: str) -> str:
    """"measured=..." as "calibrate.measured=..." where the section of that command has the key, or one spelt much like it."""
    first, dot, _ = item.partition("=")[0].strip().partition(".")
    field = Options.model_fields.get(section)
    if field is None or (dot and first in Options.model_fields):
        return item
    own, near = field.annotation.model_fields, difflib.get_close_matches(first, Options.model_fields, 1)
    misspelt = not near and first not in Options.model_fields and difflib.get_close_matches(first, own, 1)
    return f"{section}.{item}" if first in own or misspelt else item


def _chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and its bases, the file itself first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            circle = " -> ".join([*(str(file) for file, _ in chain), str(path)])
            raise InputError(f"{path}: base: goes in a circle ({circle}); take one base out")
        if not path.is_file():
            raise InputError(_missing(path, asked_by=chain[-1][0] if chain else None))
        content = read_yaml(path, OptionLoader, "mend the line, or quote the value")
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected `key: value` lines, found a {type(content).__name__}")
        seen.append(path.resolve())
        chain.append((path, content))
        base = content.pop("base", None)
        if base is None:
            return chain
        if not isinstance(base, str):
            raise InputError(f"{path}: base = {base!r}: expected the name of one option file")
        path = path.parent / base


def _missing(path: Path, asked_by: Path | None) -> str:
    known = sorted({*(ROOT / "options").rglob("*.yaml"), *path.parent.glob("*.yaml")})
    by_name = {str(_short(file)): file for file in known} | {file.stem: file for file in known}
    near = difflib.get_close_matches(str(path), by_name, 1) or difflib.get_close_matches(path.stem, by_name, 1)
    found = "a folder, not an option file" if path.is_dir() else "no such option file"
    wanted = f" (base: of {asked_by})" if asked_by else ""
    remedy = f"did you mean {_short(by_name[near[0]])}?" if near else "option files lie in options/"
    return f"{path}{wanted}: {found}; {remedy}"


def _short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _merge(tree: dict, content: dict, origins: Origins, origin: str, path: tuple[str, ...] = ()) -> None:
    """Lay `content` over `tree` in place."""
    if path and "name" in content and content["name"] != tree.get("name", content["name"]):
        tree.clear()
        for old in [key for key in origins if key[:len(path)] == path and key != path]:
            del origins[old]
    for key, value in content.items():
        here = (*path, str(key))
        if isinstance(value, dict):
            if not isinstance(tree.get(key), dict):
                tree[key] = {}
                origins[here] = origin
            _merge(tree[key], value, origins, origin, here)
        else:
            tree[key] = value
            origins[here] = origin


def _override(text: str) -> tuple[tuple[str, ...], Any]:
    """Key path and value of "a.b=c"."""
    keys, equals, value = text.partition("=")
    path = tuple(key.strip() for key in keys.split("."))
    if not equals or not all(path):
        raise InputError(f"{COMMAND_LINE}: {text!r}: expected key=value, e.g. train.lr=3e-4")
    if not value.strip():
        raise InputError(f"{COMMAND_LINE}: {text!r}: the value is missing; for none write {keys}=null, for no text \"''\"")
    if path == ("base",):
        raise InputError(f"{COMMAND_LINE}: {text!r}: a base is given in the option file, not here")
    try:
        return path, yaml.load(value, Loader=OptionLoader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"{COMMAND_LINE}: {text!r}: the value is not yaml ({error}); quote it") from error


def _set(tree: dict, path: tuple[str, ...], value: Any, origins: Origins) -> None:
    """Put an override into the tree: a mapping is laid over the section, anything else replaces."""
    for n, key in enumerate(path[:-1]):
        if tree.get(key) is not None and not isinstance(tree[key], dict):
            section = ".".join(path[:n + 1])
            raise InputError(f"{COMMAND_LINE}: {'.'.join(path)}={value}: {section} is {tree[key]!r}, not a section")
        if tree.get(key) is None:
            tree[key] = {}
            origins[path[:n + 1]] = COMMAND_LINE
        tree = tree[key]
    _merge(tree, {path[-1]: value}, origins, COMMAND_LINE, path[:-1])


def explain(error: ValidationError, origins: Origins, tree: dict[str, Any]) -> str:
    """The first fault of a checked tree in one line, and how many others there are."""
    fault, *rest = error.errors()
    path = _existing(fault["loc"], tree, keep_last=fault["type"] in ("missing", "extra_forbidden"))
    others = len({_existing(other["loc"], tree, keep_last=True) for other in rest} - {path})
    more = f" (and {others} more)" if others else ""
    # What a section says of several options together names them `key = value`; each may have been set elsewhere.
    named = {key: origins[(*path, key)] for key in re.findall(r"\b(\w+) = ", fault["msg"]) if (*path, key) in origins}
    nearest = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), "option file")
    told = " and ".join(dict.fromkeys(named.values())) or nearest
    below = [key for key, origin in named.items() if origin != COMMAND_LINE]
    if fault["msg"].endswith("set the other to null") and len(named) == 2 and len(below) == 1:
        more = f"; add {'.'.join((*path, below[0]))}=null{more}"
    return f"{told}: {_worded(path, fault, tree)}{more}"


def _existing(loc: tuple[str | int, ...], tree: Any, keep_last: bool) -> tuple[str, ...]:
    """The key path of a fault: its `loc` without the parts that pydantic adds for the branch of a union."""
    kept = []
    for n, part in enumerate(loc):
        known = tree if isinstance(tree, dict) else dict(enumerate(tree)) if isinstance(tree, list) else {}
        if part in known:
            tree = known[part]
            kept.append(str(part))
        elif keep_last and n == len(loc) - 1:
            kept.append(str(part))
    return tuple(kept)


def _worded(path: tuple[str, ...], fault: dict[str, Any], tree: dict[str, Any]) -> str:
    key, value = ".".join(path), fault["input"]
    found = repr(value) if len(repr(value)) < 80 else repr(value)[:76] + " ..."
    if fault["type"] == "extra_forbidden":
        return f"{key} = {found}: there is no such option{_nearest(path, tree)}"
    if fault["type"] == "missing":
        return f"{key}: this option must be given"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if fault["type"] in ("model_type", "dict_type"):
        section = _class_at(path, tree)
        message = f"expected options, e.g. {key}.{next(iter(section.model_fields)) if section else 'NAME'}=..."
    if fault["type"] in ("bool_parsing", "bool_type"):
        message = "expected true or false"
    if fault["type"] == "string_type":
        message += f"; in quotes it is one: {key}: '{value}' (in a shell {key}=\"'{value}'\")"
    return f"{key}: {message}" if isinstance(value, dict) else f"{key} = {found}: {message}"


def _nearest(path: tuple[str, ...], tree: dict[str, Any]) -> str:
    """'; did you mean ...?' from the keys of the same section, else of any; the section's keys where nothing is near."""
    section = _class_at(path[:-1], tree)
    known = list(section.model_fields) if section else []
    if near := difflib.get_close_matches(path[-1], known, 1):
        return f"; did you mean {'.'.join([*path[:-1], near[0]])}?"
    for name in Options.model_fields:
        if (inner := _class_at((name,), tree)) and path[-1] in inner.model_fields:
            return f"; did you mean {name}.{path[-1]}?"
    return f"; known are {', '.join(known)}" if known else ""


def _class_at(path: tuple[str, ...], tree: dict[str, Any]) -> type[BaseModel] | None:
    """The options class of a section, or None where the path leads into none. Numbers in it are places in a list."""
    section: type[BaseModel] | None = Options
    here: Any = tree
    for key in path:
        here = _inside(here, key)
        if key.isdecimal():
            continue
        if key in PACKAGES and isinstance(here, dict) and here.get("name") in modules(PACKAGES[key]):
            section = importlib.import_module(f"{PACKAGES[key]}.{here['name']}").Options
        else:
            field = section.model_fields.get(key) if section else None
            section = _model_in(field.annotation) if field else None
    return section


def _inside(value: Any, key: str) -> Any:
    """What a key, or a place in a list, leads to; None where it leads nowhere."""
    if isinstance(value, dict):
        return value.get(key)
    return value[int(key)] if isinstance(value, (list, tuple)) and key.isdecimal() and int(key) < len(value) else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The options class inside an annotation such as `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
