"""One hand of the demo fitted to its 2D keypoints: pose and place by the solver of `refine`, the shape as it is.

A hand that cannot be fitted, or whose fit flies off, stays as it was, and its `pose_source` says why.
"""
import torch

from src.demo_hand import BY_KEYPOINTS, Seen, View, posed
from src.demo_input import Unfit
from src.refine import RefineSolver
from src.root import NEAREST_M
from src.solver import HandState, Observations, solve

REFINED = "fitted to 2D keypoints"
FARTHEST_M = 3.0
SIGMA_CROP_PX = 2.0  # standard deviation of a keypoint of confidence 1, in pixels of the crop that it was found in


def refined(view: View, seen: Seen) -> Seen:
    """The hand with the pose and root that explain its keypoints best, near the pose it had. InputError: no keypoints, or no
    parameters to fit."""
    if seen.uv is None:
        raise Unfit("demo.refine fits to 2D keypoints, and there are none; set demo.keypoints=<folder of a trained pose2d run>")
    if seen.rotations is None or seen.shape is None:
        raise Unfit("demo.refine: this model predicts no rotations or no shape to refine; set demo.refine=false")
    if seen.root_source != BY_KEYPOINTS:  # no place to start from
        return seen._replace(pose_source=f"{seen.pose_source} (not fitted: {seen.root_source})")
    to = view.hand.weights
    start = HandState(*(part[None].to(to) for part in (seen.rotations, seen.root, seen.shape)))
    observed = Observations(uv=seen.uv[None, None].to(to), uv_weight=seen.uv_confidence[None, None].to(to),
                            K=torch.from_numpy(seen.cut.K_full)[None, None].to(to), sigma_px=SIGMA_CROP_PX * seen.uv_pixel)
    found = solve(view.hand, observed, start, RefineSolver())
    depth = float(found.state.root[0, 2])
    if not found.converged[0] or not NEAREST_M < depth <= FARTHEST_M:
        return seen._replace(pose_source=f"{seen.pose_source} (not fitted: did not converge)")
    seen = posed(view, seen, found.state.rotations[0].double().cpu(), seen.shape)
    return seen._replace(root=found.state.root[0].double().cpu(), pose_source=REFINED)
