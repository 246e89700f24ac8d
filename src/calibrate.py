"""Calibration: predictions of a person's images -> that person's identity file (shape), and the curve against n.

Kong et al., ECCV 2022 (specs/idhandmesh.md section 5). Reads predictions files only, never images or a network.
"""
from typing import Annotated, Literal

from pydantic import Field

from utils.strict import Strict

Count = Annotated[int, Field(ge=1)]


class CalibrateOptions(Strict):
    """Which predictions calibrate whom, and how (`calibrate:` of an option file)."""

    predictions: str = Field("", description="predictions file of the images that calibrate (written by `test`)")
    scored: str | None = Field(None, description="predictions file of the frames that will be scored; must share no frame with the above")
    allow_scored_frames: bool = Field(False, description="calibrate on scored frames all the same, as the original did")
    out: str = Field("", description="folder for the identity files; empty = out/<name>/identities")
    sequences: list[str] = Field(default_factory=list, description="only frames whose name lies in one of these folders (globs); empty = all")
    subjects: list[int] = Field(default_factory=list, description="only these people; empty = all in the file")
    method: Literal["random", "top", "weighted", "all"] = Field("random", description="which images of a person, and their weights")
    n: Count = Field(20, description="images per person for random and top (weighted and all use every image)")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the draws of `random`; 0 is the original's")
    draws: Count = Field(10, description="draws averaged in the curve; the identity file holds draw 0")
    temperature: float = Field(1.0, gt=0, description="weighted: weights are softmax(confidence / temperature)")
    curve_n: list[Count] = Field(default=[1, 2, 3, 4, 5, 10, 20, 50, 100, 200], min_length=1, description="numbers of images of the curve")
