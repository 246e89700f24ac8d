"""Parameters from joints and vertices: hands of known pose and shape come back, and wrong input is refused in one line."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from solver_cases import free_hand, scene

from options.load import load
from src.fit import FitOptions, fit
from src.fit_input import read_hands
from src.fit_start import kabsch, shortest_turn, start_from_joints
from src.identity import Identity, write_identity
from utils.errors import InputError
from utils.hand import mirror_points
from utils.joints import reorder
from utils.mesh_files import write_ply
from utils.predictions import PredictionsWriter
from utils.rotation import geodesic, matrix_from_axis_angle

CPU = torch.device("cpu")


def run(tmp_path: Path, arrays: dict | None = None, **options) -> tuple[dict[str, np.ndarray], str]:
    """fit of arrays (or options["input"]): what it wrote, and what it said."""
    if arrays is not None:
        np.savez(tmp_path / "hands.npz", **arrays)
        options["input"] = str(tmp_path / "hands.npz")
    text = fit(FitOptions(**options), tmp_path / "out", hand=free_hand(), device=CPU)
    with np.load(tmp_path / "out" / f"{Path(options['input']).stem}.npz") as file:
        return {key: file[key] for key in file.files}, text


def posed_again(found: dict[str, np.ndarray], hand) -> np.ndarray:
    """Vertices from the axis-angle pose, the shape and the translation that were written, by the hand's own pose vector."""
    pose, shape, trans = (torch.from_numpy(found[key]) for key in ("pose", "shape", "trans"))
    return hand(hand.rotations_from_pose(pose, pca=False, flat_mean=True), shape).moved(trans).verts.numpy()


def test_vertices(tmp_path):
    """Meshes of random people and poses: vertices, shape and pose come back, and the parameters make the written mesh."""
    case = scene(40, seed=21)
    found, text = run(tmp_path, {"verts": case.verts.numpy()})
    assert found["converged"].all() and "40 fitted to their vertices" in text
    assert np.linalg.norm(found["verts"] - case.verts.numpy(), axis=-1).mean() < 1e-4 / 2  # metres; 0.1 mm is the aim
    assert np.allclose(found["error_mm"], 1000 * np.linalg.norm(found["verts"] - case.verts.numpy(), axis=-1).mean(1), atol=1e-3)
    assert np.abs(posed_again(found, free_hand()) - found["verts"]).max() < 2e-6
    assert np.abs(found["shape"] - case.true.shape.numpy()).max() < 0.1
    assert geodesic(torch.from_numpy(found["rotations"]), case.true.rotations).max() < 0.1
    pca = free_hand().axis_angle_from_pca(torch.from_numpy(found["pca"])).numpy()
    assert np.abs(pca - found["pose"][:, 3:]).max() < 1e-4
    assert np.abs(found["root"] - case.true.root.numpy()).max() < 1e-3


def test_joints(tmp_path):
    """Joints of random people and poses are met to less than a millimetre; H21, in millimetres, as .npy, gives the same hands."""
    case = scene(40, seed=22)
    found, text = run(tmp_path, {"joints": case.joints.numpy()})
    error = 1000 * np.linalg.norm(found["joints"] - case.joints.numpy(), axis=-1)
    assert found["converged"].all() and error.mean() < 0.5 and error.max() < 2.0 and "joints" in text
    np.save(tmp_path / "h21.npy", 1000 * reorder(case.joints, "H21", "T21").numpy())
    again, _ = run(tmp_path, input=str(tmp_path / "h21.npy"), units="mm", order="H21")
    assert np.abs(again["joints"] - found["joints"]).max() < 2e-4


def test_noise(tmp_path):
    """Joints with 3 mm of noise give hands nearer to the truth than the joints are, told how large the noise is."""
    case = scene(60, seed=23)
    noise = 0.003 * torch.randn(60, 21, 3, generator=torch.Generator().manual_seed(0))
    found, _ = run(tmp_path, {"joints": (case.joints + noise).numpy()}, sigma_mm=3.0,
                   solver={**FitOptions().solver.model_dump(), "pose_prior": 1.0})
    error = np.linalg.norm(found["joints"] - case.joints.numpy(), axis=-1).mean()
    assert error < 0.8 * noise.norm(dim=-1).mean()


@pytest.mark.parametrize("what", ["joints", "verts"])
def test_left_hands(tmp_path, what):
    """A left hand's parameters, given to the mirrored hand model, make its mesh and joints; they mirror the right hand's."""
    case = scene(6, seed=24)
    left = free_hand().mirrored()
    target = mirror_points(getattr(case, what))
    found, _ = run(tmp_path, {what: target.numpy()}, side="left")
    assert str(found["side"]) == "left" and found["error_mm"].max() < 0.6
    again = posed_again(found, left)
    assert np.abs(again - found["verts"]).max() < 2e-6
    assert np.linalg.norm(found[what] - target.numpy(), axis=-1).mean() < 6e-4
    assert np.abs(left.axis_angle_from_pca(torch.from_numpy(found["pca"])).numpy() - found["pose"][:, 3:]).max() < 1e-4
    right, _ = run(tmp_path, {what: getattr(case, what).numpy()})
    assert np.abs(right["shape"] - found["shape"]).max() < 1e-5


def test_shapes(tmp_path):
    """One shape for all rows is one, and the truth; a held one is the identity file's; zero is zero."""
    true = torch.randn(1, 10, generator=torch.Generator().manual_seed(5))
    case = scene(10, seed=25, shape=true.expand(10, 10))
    shared, _ = run(tmp_path, {"joints": case.joints.numpy()}, shape="shared")
    assert (shared["shape"] == shared["shape"][0]).all() and np.abs(shared["shape"][0, :2] - true[0, :2].numpy()).max() < 0.2
    identity = tmp_path / "7.json"
    write_identity(identity, Identity(subject=7, shape=true[0].double().numpy(), hand=free_hand().info, n=3, method="all"))
    held, _ = run(tmp_path, {"joints": case.joints.numpy()}, shape="held", identity=str(identity))
    assert np.allclose(held["shape"], true.numpy()) and held["error_mm"].mean() < 0.2
    zero, _ = run(tmp_path, {"joints": case.joints.numpy()}, shape="zero")
    assert not zero["shape"].any() and zero["error_mm"].mean() > 3 * held["error_mm"].mean()


def test_predictions_file(tmp_path):
    """A predictions file: its meshes at their roots; a shared shape is one per subject."""
    shape = torch.randn(2, 10, generator=torch.Generator().manual_seed(6))
    subject = np.array([3, 3, 8, 8, 3, 8])
    case = scene(6, seed=26, shape=shape[[0, 0, 1, 1, 0, 1]])
    root = case.true.root[:, None]
    with PredictionsWriter(tmp_path / "p.npz", {}) as writer:
        writer.append(name=[f"f{i}" for i in range(6)], subject=subject, index=np.arange(6), mirrored=np.zeros(6, bool),
                      pred_verts=(case.verts - root).numpy(), pred_joints=(case.joints - root).numpy(),
                      pred_root=root[:, 0].numpy())
    found, _ = run(tmp_path, input=str(tmp_path / "p.npz"), shape="shared")
    assert np.abs(found["root"] - root[:, 0].numpy()).max() < 1e-3 and found["error_mm"].max() < 0.1
    assert np.abs(found["shape"] - case.true.shape.numpy()).max() < 0.05
    with pytest.raises(InputError, match="right hands"):
        run(tmp_path, input=str(tmp_path / "p.npz"), side="left")


def test_other_tips(tmp_path):
    """Joints whose fingertips are another set are met with that set, and not so well with manopth's."""
    case, hand = scene(8, seed=27), free_hand()
    posed = hand(case.true.rotations, case.true.shape)
    joints = hand.joints(posed, tips="handoccnet").numpy()
    right, _ = run(tmp_path, {"joints": joints}, tips="handoccnet", shape="zero")
    wrong, _ = run(tmp_path, {"joints": joints}, shape="zero")
    assert right["error_mm"].mean() < wrong["error_mm"].mean()
    assert hand.joints(posed, tips="manopth").numpy() != pytest.approx(joints)


def test_rows_left_out(tmp_path):
    """A row with a NaN is left out, stays NaN in the file, and is counted; the others are what they are without it."""
    case = scene(5, seed=28)
    joints = case.joints.numpy().copy()
    joints[2, 4, 1] = np.nan
    found, text = run(tmp_path, {"joints": joints})
    assert "1 left out (not finite; first: row 2)" in text and "5 hands: 4 fitted" in text
    assert np.isnan(found["verts"][2]).all() and np.isnan(found["error_mm"][2]) and not found["converged"][2]
    rest, _ = run(tmp_path, {"joints": np.delete(joints, 2, 0)})
    assert np.array_equal(np.delete(found["pose"], 2, 0), rest["pose"])


def test_other_files(tmp_path):
    """A single mesh as .ply and a single hand's joints as .json are fitted like arrays."""
    case = scene(1, seed=29)
    write_ply(tmp_path / "mesh.ply", case.verts[0].numpy(), free_hand().faces.numpy())
    mesh, _ = run(tmp_path, input=str(tmp_path / "mesh.ply"))
    assert mesh["error_mm"].shape == (1,) and mesh["error_mm"][0] < 0.1
    for content in (case.joints[0].tolist(), {"joints": case.joints.tolist()}):
        (tmp_path / "hand.json").write_text(json.dumps(content))
        found, _ = run(tmp_path, input=str(tmp_path / "hand.json"))
        assert np.linalg.norm(found["joints"] - case.joints.numpy(), axis=-1).max() < 2e-3


@pytest.mark.parametrize("content, options, word", [
    ({"joints": np.zeros((4, 20, 3))}, {}, "expected \\(n,21,3\\), found \\(4, 20, 3\\)"),
    ({"verts": np.zeros((2, 779, 3))}, {}, "778"),
    ({"keypoints": np.zeros((4, 21, 3))}, {}, "found keypoints"),
    ({"joints": np.full((4, 21, 3), np.nan)}, {}, "none of the 4 rows is finite"),
    ({"joints": np.zeros((0, 21, 3))}, {}, "0 rows"),
    ({"joints": np.array([["a"] * 3] * 21)[None]}, {}, "expected numbers"),
    ({"joints": np.array([None])}, {}, "breaks"),
    ({"joints": 100 * np.random.default_rng(0).random((3, 21, 3))}, {}, "likely the file is in mm: set fit.units=mm"),
    ({"joints": 0.1 * np.random.default_rng(0).random((3, 21, 3))}, {"units": "mm"}, "set fit.units=m"),
    ({"joints": np.ones((3, 21, 3))}, {}, "would measure 0 m"),
    ({"joints": np.zeros((3, 21, 3)), "verts": np.zeros((2, 778, 3))}, {}, "as many"),
    ({"joints": np.zeros((3, 21, 3))}, {"use": "verts"}, "fit.use"),
    ({"joints": np.zeros((3, 21, 3))}, {"shape": "held"}, "identity"),
    ({"joints": np.zeros((3, 21, 3))}, {"identity": "1.json"}, "identity"),
], ids=str)
def test_bad_input(tmp_path, content, options, word):
    """Wrong sizes, names, kinds, units and options are refused in one line that names the file or the option."""
    with pytest.raises(InputError, match=word) as error:
        run(tmp_path, content, **options)
    assert "\n" not in str(error.value) and ("hands.npz" in str(error.value) or "fit." in str(error.value))


@pytest.mark.parametrize("name, content", [
    ("a.npz", b"PK\x03\x04 cut"), ("a.npy", b"no numpy"), ("a.json", b"{"), ("a.txt", b"1 2 3"), ("a.json", b"[[1, 2], [3]]"),
    ("a.json", b"7"), ("a.ply", b"ply\nformat ascii 1.0\n")])
def test_broken_files(tmp_path, name, content):
    """Files that break, of every kind, and files that are not there, are refused in one line with their name."""
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path / "absent.npz"):
        with pytest.raises(InputError, match=path.name):
            read_hands(path, "m", "T21", False, "auto")


def test_result_does_not_replace_input(tmp_path):
    """The result would have the input's name in the input's folder: refused."""
    np.savez(tmp_path / "hands.npz", joints=scene(1).joints.numpy())
    with pytest.raises(InputError, match="fit.out"):
        fit(FitOptions(input=str(tmp_path / "hands.npz")), tmp_path, hand=free_hand(), device=CPU)
    with pytest.raises(InputError, match="fit.input"):
        fit(FitOptions(), tmp_path, hand=free_hand(), device=CPU)


def test_start():
    """The closed-form start gives the rotations of a hand whose bones turn without twist, and a few millimetres for any other."""
    case = scene(20, seed=30)
    hand = free_hand()
    start = start_from_joints(hand, case.joints, case.true.shape)
    joints = hand.joints(hand(start.rotations, start.shape))
    error = (joints - joints[:, :1] + start.root[:, None] - case.joints).norm(dim=-1)
    assert error.mean() < 0.003 and torch.allclose(start.root, case.joints[:, 0])
    flat = hand(matrix_from_axis_angle(torch.zeros(1, 16, 3)), torch.zeros(1, 10))
    again = start_from_joints(hand, hand.joints(flat), torch.zeros(1, 10))
    assert geodesic(again.rotations, torch.eye(3)).max() < 1e-3


def test_turns():
    """Kabsch finds the rotation of turned points, never a reflection; the shortest turn turns, half turns included."""
    generator = torch.Generator().manual_seed(0)
    points, vectors = torch.randn(50, 5, 3, generator=generator).double(), torch.randn(50, 3, generator=generator).double()
    rotation = matrix_from_axis_angle(vectors)
    assert torch.allclose(kabsch(points, points @ rotation.transpose(1, 2) + 3), rotation, atol=1e-12)
    assert torch.allclose(torch.linalg.det(kabsch(points, -points)), torch.ones(50).double())
    target = torch.cat((torch.randn(48, 3, generator=generator).double(), -vectors[48:49], torch.zeros(1, 3).double()))
    turn = shortest_turn(vectors, target)
    turned = (turn @ vectors[:, :, None])[:, :, 0]
    assert torch.allclose(turned[:49] / vectors[:49].norm(dim=1, keepdim=True), torch.nn.functional.normalize(target[:49], dim=1))
    assert torch.allclose(turn @ turn.transpose(1, 2), torch.eye(3).double().expand(50, 3, 3), atol=1e-9)
    assert torch.equal(turn[49], torch.eye(3).double())


def test_option_file():
    """options/fit.yaml says the defaults."""
    assert load("options/fit.yaml", []).fit == FitOptions()
