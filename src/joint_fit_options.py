"""Options of the estimators that fit keypoints or depth (`calibrate.fit`)."""
from typing import Annotated

from pydantic import Field

from src.solver_data import SolverOptions
from utils.strict import Strict

Count = Annotated[int, Field(ge=1)]


class FitOptions(Strict):
    """How calibrate.method joint, views and depth fit."""

    keypoint_px: float = Field(2.0, gt=0, description="standard deviation of a sure keypoint, pixels of the whole picture")
    alike: float = Field(0.2, ge=0, le=1,
                         description="share of the keypoints' error variance that a person's pictures have in common")
    cameras: Count = Field(8, description="views: at most this many cameras of a moment")
    depth_mm: float = Field(4.0, gt=0, description="depth: standard deviation of a joint's depth")
    rounds: Count = Field(3, description="depth: times that the surface is compared with the fitted mesh")
    solver: SolverOptions = SolverOptions(iterations=40, robust="huber", robust_scale=2.5, pose_prior=1.0)
