"""Options that datasets share: of the crops that `prepare` cuts once, and of what is read of them.

A dataset's own Options adds `name`, its defaults, and what only it has.
"""
from typing import Any, Literal

from pydantic import Field

from utils.strict import Strict


class StoredOptions(Strict):
    """The crops that `prepare` cuts once. A wider factor than crop.factor leaves room for augmentation."""

    factor: float = Field(2.0, gt=0.5, le=8, description="side of the stored crop / longer side of the box of the joints")
    pixels: int | None = Field(None, ge=16, le=1024, description="side of the stored crop; null = its native size")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality")


class PreparedOptions(Strict):
    """`dataset:` of an option file, for prepare (down to `workers`) and for reading; subclasses set name, root and prepared."""

    root: str
    prepared: str
    hands: Literal["right", "mirror_left"] = Field("right", description="right hands only, or both with the left mirrored")
    left_shapedirs: Literal["as_is", "flip_x", "negate"] = Field("as_is", description="how a left hand file is read")
    stored: StoredOptions = StoredOptions()
    limit: int | None = Field(None, ge=1, description="prepare at most this many pictures of each split, evenly spread")
    unreadable: Literal["stop", "skip"] = Field("stop", description="a broken file: stop with its name, or count it and go on")
    workers: int = Field(0, ge=0, description="processes of prepare; 0 = one per core")

    every: int = Field(1, ge=1, description="read every k-th picture of the split")
    frames: int | None = Field(None, ge=1, description="read at most this many, evenly spread over the split")
    read_pixels: int | None = Field(None, ge=16, le=1024, description="native-size crops are read at this; null = as crop needs")

    def plan(self) -> dict[str, Any]:
        """The part that a prepared folder depends on; datasets add theirs."""
        return {"hands": self.hands, "limit": self.limit, "unreadable": self.unreadable, **self.stored.model_dump()}
