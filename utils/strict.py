"""Base of every options class: typed, frozen, unknown keys refused. The loader (options/load.py) words the errors."""
from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Options of one room. Each method, dataset and command owns its class in its own file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
