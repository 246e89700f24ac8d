"""The original's optimisation (spec: idhandmesh 6.4): against its own numbers, by chunks, and the decoding of its targets."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src.refine_faithful import fit_faithful, reprojection_energy, start_on_ray, targets_of_cells
from utils.rotation import matrix_from_rows6d, rows6d_from_matrix

sys.path.insert(0, str(Path(__file__).parent))
from toy_hand import error, random_inputs, toy

# golden_optimization.npz: every input but the true meshes (made again here), and of the meshes every 13th vertex.
GOLDEN = dict(np.load(Path(__file__).parent / "goldens" / "optimization.npz"))


def given(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name]).float()


def golden_inputs(shape: str) -> dict[str, torch.Tensor]:
    uv, K = targets_of_cells(given("uv_pred")[..., :2], given("crop_bbox")), given("K").expand(4, 3, 3)
    return {"uv": uv, "used": torch.ones(4, 21), "K": K, "rows6d": given("pred_pose_params").view(4, 16, 6),
            "shape": given(shape), "trans": start_on_ray(uv[:, 0], K)}


@pytest.mark.parametrize(("tag", "shape", "whole_mesh"), [
    ("ours_gt", "gt_shape_params", False), ("ours_gt", "gt_shape_params", True), ("baseline", "pred_shape_params", False)])
def test_golden(tag, shape, whole_mesh):
    """300 steps on the toy hand against the original's: loss 5e-5 relative, place 1e-5 m, 6D 1e-3, mesh and its error 1e-2 mm."""
    hand, last, curve = toy(), {}, []

    def watch(step, joints, trans, rows6d, energy):
        curve.append(float(energy.mean()))
        last.update(trans=trans.clone(), rows6d=rows6d.clone())

    fit = fit_faithful(hand, **golden_inputs(shape), watch=watch, whole_mesh=whole_mesh)
    assert np.abs(np.array(curve) / GOLDEN[f"{tag}.loss"] - 1).max() < 5e-5
    assert error(fit.trans, GOLDEN[f"{tag}.trans"]) < 1e-5
    assert error(fit.rows6d.flatten(1), GOLDEN[f"{tag}.pose6d"]) < 1e-3
    verts = 1e3 * hand(matrix_from_rows6d(last["rows6d"]), given(shape)).verts  # as the original: that before the last step
    assert error(verts[:, ::13], GOLDEN[f"{tag}.mesh_mm"]) < 1e-2
    rotations = hand.rotations_from_pose(given("gt_pose_params"), pca=True, flat_mean=False)
    true = 1e3 * hand(rotations, given("gt_shape_params")).verts
    assert abs(float((verts - true).norm(dim=2).mean()) - GOLDEN[f"{tag}.mjpve"][-1]) < 1e-2


def test_chunks_change_nothing():
    """4 frames at once, three of them and one alone, each with the mean over all 4: one place and pose to 1e-6, in float64."""
    hand = toy(torch.float64)
    rotations, shape = random_inputs(4, seed=1)
    K = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]], dtype=torch.float64).expand(4, 3, 3)
    place = torch.tensor([0.0, 0.0, 0.8], dtype=torch.float64)
    seen = (hand.joints(hand(rotations, shape)) + place) @ K.transpose(1, 2)
    uv = seen[..., :2] / seen[..., 2:]
    used = torch.ones(4, 21, dtype=torch.float64)
    used[2, :5] = 0
    start = rows6d_from_matrix(rotations) + 0.1 * torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(2)).double()

    def fitted(rows):
        fit = fit_faithful(hand, *(x[rows] for x in (uv, used, K, start, shape, place.expand(4, 3))), total=4)
        return fit.trans, fit.rows6d, fit.energy, fit.start_energy

    whole = fitted(slice(4))
    for rows in (slice(3), slice(2, 3)):
        for one, other in zip(fitted(rows), whole):
            torch.testing.assert_close(one, other[rows], rtol=1e-6, atol=1e-6)
    assert (whole[2] < 0.5 * whole[3]).all()


def test_missing_keypoints_say_nothing():
    """A keypoint that is not used may lie anywhere: the energy and the fit are those of the others."""
    hand, inputs = toy(), golden_inputs("gt_shape_params")
    inputs["used"][:, 3] = 0
    one = fit_faithful(hand, **inputs)
    inputs["uv"] = inputs["uv"].clone()
    inputs["uv"][:, 3] = 1e4
    other = fit_faithful(hand, **inputs)
    assert torch.equal(one.trans, other.trans) and torch.equal(one.energy, other.energy)


def test_energy_is_the_mean_over_measured_coordinates():
    """Joints all off by (3, 4) px: energy 12.5 px^2, whichever of them are measured."""
    joints = torch.rand(2, 21, 3) * 0.1 + torch.tensor([0.0, 0.0, 0.7])
    K = torch.tensor([[500.0, 0, 160], [0, 510, 120], [0, 0, 1]]).expand(2, 3, 3)
    seen = joints @ K.transpose(1, 2)
    uv = seen[..., :2] / seen[..., 2:] + torch.tensor([3.0, 4.0])
    used = torch.ones(2, 21)
    used[0, ::2] = 0
    torch.testing.assert_close(reprojection_energy(joints, K, uv, used), torch.full((2,), 12.5), rtol=1e-3, atol=0)


def test_targets_of_cells():
    """The middle of a cell of a 250 px crop is read exactly without bias; with it, half a cell less half a pixel up and left."""
    cells = torch.randint(0, 112, (3, 21, 2)).float()
    box = torch.tensor([[100.0, 40.0, 350.0, 290.0]]).expand(3, 4)
    middle = (cells + 0.5) * 250 / 112 - 0.5 + box[:, None, :2]
    torch.testing.assert_close(targets_of_cells(cells, box, biased=False), middle)
    bias = 0.5 * 250 / 112 - 0.5
    torch.testing.assert_close(targets_of_cells(cells, box), middle - bias)


def test_start_on_ray():
    """The start lies at 0.85 m and is seen at the wrist's keypoint."""
    K = torch.tensor([[600.0, 0, 320], [0, 500, 240], [0, 0, 1]]).expand(2, 3, 3)
    uv = torch.tensor([[10.0, 20.0], [400.0, 300.0]])
    start = start_on_ray(uv, K)
    seen = (K @ start[:, :, None])[..., 0]
    assert (start[:, 2] == 0.85).all()
    torch.testing.assert_close(seen[:, :2] / seen[:, 2:], uv)
