"""Demo: pictures of hands -> overlay (PNG), mesh (PLY) and numbers (JSON), with a person's identity file where one is given."""
from typing import Literal

from pydantic import Field

from utils.strict import Strict


class DemoOptions(Strict):
    """What the demo shows and what it may assume (`demo:` of an option file)."""

    input: str = Field("", description="a picture, or a folder of pictures")
    out: str = Field("", description="folder of the results; empty = out/<name>/demo")
    boxes: str | None = Field(None, description="json: boxes of the hands (left, top, width, height); null = the whole picture is one box")
    K: str | None = Field(None, description="camera matrix, .json or .npy, or a folder with one per picture; null = from fov")
    fov: float | None = Field(None, gt=0, lt=180, description="field of view across the longer side, degrees; null = a nominal one")
    side: Literal["right", "left"] = Field("right", description="which hand it is, where the box does not say")
    identity: str | None = Field(None, description="identity file of the person shown (written by `calibrate`)")
    alpha: float = Field(0.8, ge=0, le=1, description="opacity of the drawn mesh")
