"""Base of every options class: typed, frozen, unknown keys refused. The loader (options/load.py) words the errors.

A section with a `name` is checked by the Options class of the module of that name: there is no register.
"""
import importlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

ROOT = Path(__file__).resolve().parent.parent


class Strict(BaseModel):
    """Options of one room. Each method, dataset and command owns its class in its own file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


def modules(package: str) -> list[str]:
    """Names of the modules of `package` that define an Options class (what `name:` may be)."""
    folder = ROOT / package.replace(".", "/")
    return sorted(p.stem for p in folder.glob("*.py") if "\nclass Options(" in p.read_text(encoding="utf-8"))


def named(package: str) -> BeforeValidator:
    """Validator that hands a section to the Options class of the module it names."""

    def choose(value: Any) -> Any:
        if value is None or isinstance(value, Strict):
            return value
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError(f"expected a section with a name, one of {modules(package)}")
        if value["name"] not in modules(package):
            raise ValueError(f"name: no {package}/{value['name']}.py; there are {modules(package)}")
        return importlib.import_module(f"{package}.{value['name']}").Options.model_validate(value)

    return BeforeValidator(choose)
