"""Options of the estimators that fit keypoints or depth (`calibrate.fit`)."""
from typing import Annotated

from pydantic import Field

from src.solver_data import SolverOptions
from utils.strict import Strict

Count = Annotated[int, Field(ge=1)]


class FitOptions(Strict):
    """How calibrate.method joint, views and depth fit."""

    keypoint_px: float = Field(0.75, gt=0, description="standard deviation of a keypoint of confidence 1, pixels of its crop")
    confidence_power: float = Field(2.8, ge=0, description="a keypoint of confidence c has that over c^(confidence_power / 2)")
    alike: float = Field(0.2, ge=0, le=1,
                         description="share of the keypoints' error variance that a person's pictures have in common")
    cameras: Count = Field(8, description="views: at most this many cameras of a moment")
    surface_rounds: Count = Field(25, description="depth: rounds of the dense fit, at most")
    surface_mm: float = Field(1.5, gt=0, description="depth: standard deviation of the surface; more for real cameras")
    surface_share: float = Field(1.0, gt=0, le=1, description="depth: of a measurement, that one of the 778 vertices counts")
    surface_least: float = Field(0.92, ge=0, le=1, description="depth: share of the mesh that must lie within 2 surface_mm of it")
    solver: SolverOptions = SolverOptions(iterations=40, robust="huber", robust_scale=2.5, pose_prior=1.0)
