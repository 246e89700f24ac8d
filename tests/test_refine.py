"""`refine` on files: what it writes and counts, whose shape it holds, and every kind of frame or file that it cannot use."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from src.identity import Identity, write_identity
from src.refine import RefineOptions, RefineSolver, refine
from src.refine_input import KeypointSource, read_frames
from src.refine_solve import solve_frames
from src.root_head import hand_length
from utils.errors import InputError
from utils.hand import HandModel
from utils.predictions import PredictionsWriter, read_predictions
from utils.rotation import matrix_from_axis_angle

HAND = HandModel.load(Path(__file__).parent.parent / "template" / "free_hand_right.npz")
CROP = np.array([[0.25, 0, -20], [0, 0.25, -10], [0, 0, 1]])
ROWS = 10


def write_files(folder: Path, rows: int = ROWS, noise_px: float = 1.0, told: str = "nothing", tips: str = "manopth",
                **broken) -> tuple[Path, Path]:
    """A mesh method's predictions, some 15 degrees off, and a 2D network's, of the same frames in another order and two more.

    broken: column -> a function that spoils it; columns of the 2D file are named uv and uv_confidence.
    """
    rng = torch.Generator().manual_seed(0)
    pose = 0.25 * torch.randn(rows, 16, 3, generator=rng)
    shape = torch.randn(rows, 10, generator=rng)
    true = HAND(matrix_from_axis_angle(pose), shape)
    rotations = matrix_from_axis_angle(pose + 0.15 * torch.randn(rows, 16, 3, generator=rng))
    held = shape + 0.3 * torch.randn(rows, 10, generator=rng)
    pred = HAND(rotations, held)
    joints, place = HAND.joints(true, tips), torch.tensor([0.02, -0.03, 0.7])
    pred_joints = HAND.joints(pred, tips)
    K = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
    true_joints = joints - joints[:, :1] + place
    seen = true_joints @ K.T
    uv = seen[..., :2] / seen[..., 2:] + noise_px * torch.randn(rows, 21, 2, generator=rng)
    columns = {
        "pred_verts": pred.verts - pred_joints[:, :1], "pred_joints": pred_joints - pred_joints[:, :1],
        "pred_rotations": rotations, "pred_shape": held, "pred_root": place + 0.02 * torch.randn(rows, 3, generator=rng),
        "true_verts": true.verts - joints[:, :1] + place, "true_joints": true_joints, "true_root": place.expand(rows, 3),
        "true_shape": shape, "subject": torch.arange(rows) % 2, "index": torch.arange(rows), "mirrored": torch.zeros(rows) > 0,
        "K": torch.from_numpy(CROP) @ K.double().expand(rows, 3, 3), "crop_from_image": torch.from_numpy(CROP).expand(rows, 3, 3),
        "official_index": torch.arange(rows), "uv": uv, "uv_confidence": torch.ones(rows, 21)}
    if told != "nothing":
        columns["identity"] = held
    columns = {key: value.numpy().copy() for key, value in columns.items()}
    for key, change in broken.items():
        change(columns[key])
    names = np.array([f"s/{i:03d}" for i in range(rows)])
    dataset = {"dataset": "toy", "split": "test", "joint_set": [tips, "chain"]}
    meta = {"method": "toy", "hand": HAND.info, "told": told, "dataset": dataset, "speed": {"images_per_s": 1.0}}
    uv, confidence = columns.pop("uv"), columns.pop("uv_confidence")
    with PredictionsWriter(folder / "mesh.npz", meta) as writer:
        writer.append(name=names, **columns)
    order = np.random.default_rng(0).permutation(rows)
    with PredictionsWriter(folder / "uv.npz", {**meta, "method": "2d"}) as writer:
        base = {key: columns[key][order] for key in ("subject", "index", "mirrored", "K", "crop_from_image")}
        writer.append(name=names[order], pred_joints_uv=uv[order], pred_uv_confidence=confidence[order], **base)
        writer.append(name=["other/1", "other/2"], pred_joints_uv=uv[:2], pred_uv_confidence=confidence[:2],
                      **{key: value[:2] for key, value in base.items()})
    return folder / "mesh.npz", folder / "uv.npz"


def run(folder: Path, hand: HandModel = HAND, **options) -> str:
    chosen = {"predictions": str(folder / "mesh.npz"), "keypoints": str(folder / "uv.npz"), "bootstrap": 100, "report": False}
    return refine(RefineOptions(**chosen | options), folder / "out", hand=hand, device=torch.device("cpu"), run="toy")


def mesh_mm(path: Path) -> np.ndarray:
    """Wrist-aligned vertex error of every row."""
    found = read_predictions(path)
    return 1e3 * np.linalg.norm(found["pred_verts"] - found["true_verts"] + found["true_joints"][:, :1], axis=2).mean(1)


def refused(folder: Path, words: str, **options) -> None:
    with pytest.raises(InputError, match=words) as caught:
        run(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["fast", "faithful"])
def test_refines_and_scores(tmp_path, mode):
    """Both modes bring the true shape's mesh nearer, keep every other column, say what was held, and write scores and report."""
    start, _ = write_files(tmp_path)
    said = run(tmp_path, mode=mode, shape="truth", report=True, start="root" if mode == "fast" else "constant")
    before, after = read_predictions(start), read_predictions(tmp_path / "out/predictions.npz")
    assert mesh_mm(after.path).mean() < (0.5 if mode == "fast" else 0.8) * mesh_mm(start).mean()
    assert "10 of 10 frames refined, 0 kept their start" in said and "hands/s" in said and "camera MPJPE" in said
    for key in ("true_joints", "K", "subject", "official_index"):
        assert np.array_equal(before[key], after[key])
    np.testing.assert_allclose(after["pred_shape"], before["true_shape"], atol=1e-6)
    rotations = np.asarray(after["pred_rotations"], float)
    np.testing.assert_allclose(rotations @ rotations.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-5)
    seen = (after["pred_joints"] + after["pred_root"][:, None]) @ np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]).T
    error = np.square(seen[..., :2] / seen[..., 2:] - after["pred_joints_uv"]).mean()
    told = after.meta["refine"]
    assert "speed" not in after.meta  # it was the network's
    assert error == pytest.approx(told["energy_after_px2"], rel=1e-3) and error < told["energy_before_px2"]
    assert after.meta["camera_protocol"] == "K + true shape" and told["mode"] == mode and told["shape_source"] == "truth"
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert set(scores["camera"]) == {"K + true shape"}
    assert (tmp_path / "out/report.html").is_file() and (tmp_path / "out/dexycb_results.txt").is_file()


def test_the_verts_are_those_of_rotations_shape_and_root(tmp_path):
    """The new columns belong together: the hand of pred_rotations and pred_shape, about its wrist, is pred_verts."""
    write_files(tmp_path)
    run(tmp_path)
    found = read_predictions(tmp_path / "out/predictions.npz")
    posed = HAND(*(torch.from_numpy(np.array(found[key])) for key in ("pred_rotations", "pred_shape")))
    joints = HAND.joints(posed)
    np.testing.assert_allclose(found["pred_verts"], posed.verts - joints[:, :1], atol=1e-6)
    np.testing.assert_allclose(found["pred_joints"], joints - joints[:, :1], atol=1e-6)


@pytest.mark.parametrize(("mode", "chunks"), [("fast", (1, 3, 4)), ("faithful", (3, 4))])
def test_chunks_change_nothing(tmp_path, mode, chunks):
    """Whatever the chunk, one result to 1e-6 m; in float64, because float32 rounding moves a solver that stops by a tolerance."""
    write_files(tmp_path, rows=4)
    found = []
    for chunk in chunks:
        run(tmp_path, hand=HandModel(HAND.arrays, torch.float64), mode=mode, chunk=chunk, official_text=False)
        refined = read_predictions(tmp_path / "out/predictions.npz")
        found.append({key: np.array(refined[key]) for key in ("pred_verts", "pred_root")})
    for other in found[:-1]:
        for key, value in found[-1].items():
            np.testing.assert_allclose(other[key], value, atol=1e-6)


def test_priors_hold_against_outliers(tmp_path):
    """With three keypoints 60 px off in every frame, the default solver ends nearer to the truth than one without its priors."""
    def spoil(uv):
        uv[:, [4, 11, 17]] += 60

    write_files(tmp_path, uv=spoil)
    run(tmp_path, shape="truth")
    default = mesh_mm(tmp_path / "out/predictions.npz").mean()
    plain = RefineSolver(robust="none", pose_prior=0, stay=0)
    run(tmp_path, shape="truth", solver=plain)
    assert default < 0.5 * mesh_mm(tmp_path / "out/predictions.npz").mean()


def test_confidence_weighs_and_masks(tmp_path):
    """Wrong keypoints of confidence 0.05 do less harm weighed than not, and none at all under min_confidence."""
    def shift(uv):
        uv[:, [8, 12]] += 30

    def doubt(confidence):
        confidence[:, [8, 12]] = 0.05

    write_files(tmp_path, noise_px=0.3, uv=shift, uv_confidence=doubt)
    plain, error = RefineSolver(robust="none"), {}
    for name, chosen in {"even": {"weigh": False}, "weighed": {}, "masked": {"min_confidence": 0.1}}.items():
        run(tmp_path, shape="truth", solver=plain, **chosen)
        error[name] = mesh_mm(tmp_path / "out/predictions.npz").mean()
    assert error["masked"] < error["weighed"] < error["even"]


def test_broken_frames_keep_their_start_and_the_others_go_on(tmp_path):
    """One frame of each kind is counted under its reason; all other frames come out as without the broken ones."""
    write_files(tmp_path)
    run(tmp_path, start="predicted", shape="truth")
    clean = read_predictions(tmp_path / "out/predictions.npz")
    clean = {key: np.array(clean[key]) for key in ("pred_verts", "pred_root")}

    def put(row, value):
        return lambda column: column.__setitem__(row, value)

    def roots(root):
        root[5, 2], root[6] = -0.4, np.nan

    mesh, _ = write_files(tmp_path, uv=put(1, np.nan), uv_confidence=put(2, 0), K=put(3, 0), pred_rotations=put((4, 2), np.nan),
                          pred_root=roots, true_shape=put(7, np.nan))
    said = run(tmp_path, start="predicted", shape="truth")
    found = read_predictions(tmp_path / "out/predictions.npz")
    reasons = {"no valid keypoint": 1, "all confidences zero": 1, "K not invertible": 1, "no finite pose": 1,
               "a start behind the camera": 1, "a start that is not finite": 1, "no shape to hold": 1}
    assert found.meta["refine"]["kept"] == reasons and found.meta["refine"]["refined"] == 3
    assert "3 of 10 frames refined, 7 kept their start" in said and "no valid keypoint (first: s/001)" in said
    for key, value in clean.items():
        np.testing.assert_allclose(found[key][[0, 8, 9]], value[[0, 8, 9]], atol=1e-5)
    start = read_predictions(mesh)
    assert np.array_equal(found["pred_verts"][[4, 7]], start["pred_verts"][[4, 7]])  # nothing to pose: as the file had it
    np.testing.assert_allclose(found["pred_rotations"][1], start["pred_rotations"][1], atol=1e-6)
    np.testing.assert_allclose(found["pred_shape"][1], start["true_shape"][1], atol=1e-6)


def test_frames_without_keypoints_in_the_other_file(tmp_path):
    """Frames that the 2D file lacks keep their start; where it has none of them, or one twice, it is refused."""
    write_files(tmp_path)
    source = read_predictions(tmp_path / "uv.npz")
    rows = {key: np.array(source[key]) for key in source.columns if key != "name"}
    names = source["name"]

    def rewrite(which, names):
        with PredictionsWriter(tmp_path / "uv.npz", source.meta) as writer:
            writer.append(name=names, **{key: value[which] for key, value in rows.items()})

    rewrite(slice(0, 6), names[:6])
    run(tmp_path)
    assert read_predictions(tmp_path / "out/predictions.npz").meta["refine"]["kept"] == {"not in the keypoints file": 4}
    rewrite(slice(10, 12), names[10:])
    refused(tmp_path, "none of the 10 frames")
    rewrite([0, 0], names[[0, 0]])
    refused(tmp_path, "there twice")
    rows["mirrored"][:] = True
    rewrite(slice(0, 6), names[:6])
    refused(tmp_path, "is mirrored here")


def test_flown_off(tmp_path):
    """A hand that ends beyond farthest_m counts as not converged and keeps its start; where all do, that is refused in a line."""
    def far(joints_uv):
        joints_uv[0] = 320 + (joints_uv[0] - 320) * 0.05  # a hand of twenty times the distance

    write_files(tmp_path, noise_px=0.0, uv=far)
    run(tmp_path)
    assert read_predictions(tmp_path / "out/predictions.npz").meta["refine"]["kept"] == {"did not converge": 1}
    refused(tmp_path, "no frame could be refined.*did not converge", farthest_m=0.1)


@pytest.mark.parametrize("start", ["root", "constant", "predicted"])
def test_starts_end_alike(tmp_path, start):
    """Exact keypoints of the true pose and shape, seen from any start position: the true position, within 5 mm of 700."""
    write_files(tmp_path, noise_px=0.0)
    predictions = read_predictions(tmp_path / "mesh.npz")
    frames = read_frames(predictions, KeypointSource(predictions, None, True), slice(0, ROWS), HAND, shape="truth", shapes=None,
                         min_confidence=0.0, weigh=True)
    frames.uv[:, 0] = np.where(np.arange(ROWS)[:, None] == 3, 0.0, frames.uv[:, 0])
    frames.weight[3, 0] = 0  # a wrist that is not seen
    found = solve_frames(HAND, frames, faithful=False, solver=RefineSolver(pose_prior=0, stay=1e-3, iterations=60), sigma_px=1.0,
                         start=start, farthest_m=3.0, total=ROWS)
    assert (found.reason == "").all()
    assert np.median(np.abs(found.root - np.array(predictions["true_root"])).max(1)) < 0.005


def test_root_prior_holds_the_depth(tmp_path):
    """A method's depth taken for sure (0.01 %) is the depth found, for the held shape's length; taken for little (100 %), the
    answer is that without it; a row without a depth is refined all the same."""
    def lost(root):
        root[2] = np.nan

    write_files(tmp_path, pred_root=lost)
    start = read_predictions(tmp_path / "mesh.npz")
    length = [hand_length(HAND, torch.from_numpy(np.array(start[key]))).numpy() for key in ("true_shape", "pred_shape")]
    expected = start["pred_root"][:, 2] * length[0] / length[1]
    depths = {}
    for share in (0.0, 1e-4, 1.0):
        run(tmp_path, shape="truth", root_prior=share)
        depths[share] = read_predictions(tmp_path / "out" / "predictions.npz")["pred_root"][:, 2].copy()
    known = np.arange(ROWS) != 2
    np.testing.assert_allclose(depths[1e-4][known], expected[known], rtol=1e-3)
    np.testing.assert_allclose(depths[1.0], depths[0.0], rtol=2e-3)
    assert np.isfinite(depths[1e-4]).all() and np.abs(depths[0.0] - expected)[known].max() > 0.01


def test_a_method_without_rotations(tmp_path):
    """Meshes alone are fitted first, and then refined as from the method's own rotations and shape, to 1 mm of mesh."""
    write_files(tmp_path)
    run(tmp_path)
    expected = read_predictions(tmp_path / "out/predictions.npz")
    expected = np.array(expected["pred_verts"])
    found = read_predictions(tmp_path / "mesh.npz")
    columns = {key: np.array(found[key]) for key in found.columns if key not in ("name", "pred_rotations", "pred_shape")}
    with PredictionsWriter(tmp_path / "mesh.npz", found.meta) as writer:
        writer.append(name=found["name"], **columns)
    run(tmp_path)
    after = read_predictions(tmp_path / "out/predictions.npz")
    assert after.meta["refine"]["refined"] == ROWS and after.meta["refine"]["pose"] == "fitted to pred_verts"
    assert np.linalg.norm(after["pred_verts"] - expected, axis=2).mean(1).max() < 1e-3


def identity_file(path: Path, subject: int, hand: dict | None = None, frames: tuple[str, ...] | None = None, **more) -> Path:
    write_identity(path, Identity(subject=subject, shape=np.full(10, 0.1 * subject), hand=hand or HAND.info, n=3, method="random",
                                  frames=frames, **more))
    return path


def test_whose_shape(tmp_path):
    """The held shape and the protocol's name: predicted, told, truth, identity files, and a folder of draws, each on its own."""
    write_files(tmp_path, told="identities")
    for shape, protocol, column in (("predicted", "K + identity", "pred_shape"), ("told", "K + identity", "identity"),
                                    ("truth", "K + true shape", "true_shape")):
        run(tmp_path, shape=shape)
        found = read_predictions(tmp_path / "out/predictions.npz")
        assert found.meta["camera_protocol"] == protocol
        np.testing.assert_allclose(found["pred_shape"], read_predictions(tmp_path / "mesh.npz")[column], atol=1e-6)
    write_files(tmp_path)
    run(tmp_path)
    assert read_predictions(tmp_path / "out/predictions.npz").meta["camera_protocol"] == "K"
    for draw in ("0", "1"):
        for subject in (0, 1):
            identity_file(tmp_path / "draws" / draw / f"{subject}.json", subject)
    said = run(tmp_path, shape=str(tmp_path / "draws"), report=True)
    found = read_predictions(tmp_path / "out/1/predictions.npz")
    assert found.meta["camera_protocol"] == "K + identity" and found.meta["told"] == "identities"
    np.testing.assert_allclose(found["pred_shape"], np.repeat(0.1 * np.asarray(found["subject"])[:, None], 10, 1), atol=1e-6)
    assert np.array_equal(found["identity"], found["pred_shape"]) and said.count("10 of 10 frames refined") == 2


def test_identity_files_that_do_not_fit(tmp_path):
    """Another hand model's, the other side's, one calibrated on a scored frame, a person without one: one line each."""
    write_files(tmp_path)
    one = identity_file(tmp_path / "a/1.json", 1)
    refused(tmp_path, "no identity of subject 0", shape=[str(one)])
    other = identity_file(tmp_path / "b/0.json", 0, {"name": "another", "sha256": "0" * 64})
    refused(tmp_path, "another.*the one in use is free_hand_right", shape=[str(one), str(other)])
    left = HandModel.load(Path(__file__).parent.parent / "template" / "free_hand_left.npz")
    other = identity_file(tmp_path / "c/0.json", 0, left.info)
    refused(tmp_path, "free_hand_left.*the one in use is free_hand_right", shape=[str(one), str(other)])
    seen = identity_file(tmp_path / "d/0.json", 0, frames=("s/002",))
    refused(tmp_path, "calibration frames are scored as well", shape=[str(one), str(seen)])


def test_files_that_do_not_fit(tmp_path):
    """No predictions named, no 2D joints, another hand model, a shape or start that the file lacks: one line each."""
    write_files(tmp_path)
    refused(tmp_path, "refine.predictions: name", predictions=None)
    refused(tmp_path, "no column pred_joints_uv.*refine.keypoints", keypoints=None)
    refused(tmp_path, "no column identity", shape="told")
    refused(tmp_path, "no column pred_verts", predictions=str(tmp_path / "uv.npz"))
    found = read_predictions(tmp_path / "mesh.npz")
    columns = {key: np.array(found[key]) for key in found.columns if key not in ("name", "pred_root")}
    with PredictionsWriter(tmp_path / "mesh.npz", found.meta) as writer:
        writer.append(name=found["name"], **columns)
    refused(tmp_path, "no column pred_root", start="predicted")
    with PredictionsWriter(tmp_path / "mesh.npz", {**found.meta, "hand": {"name": "mano", "sha256": "1" * 64}}) as writer:
        writer.append(name=found["name"], **columns)
    refused(tmp_path, "made with hand model mano")


def test_without_truth(tmp_path):
    """A file without labels is refined and not scored."""
    write_files(tmp_path)
    found = read_predictions(tmp_path / "mesh.npz")
    with PredictionsWriter(tmp_path / "mesh.npz", found.meta) as writer:
        writer.append(name=found["name"], **{key: np.array(found[key]) for key in found.columns
                                             if key != "name" and not key.startswith("true_")})
    assert "nothing scored" in run(tmp_path)
    assert not (tmp_path / "out/scores.json").exists()
    assert len(read_predictions(tmp_path / "out/predictions.npz")) == ROWS
    refused(tmp_path, "no column true_joints", keypoints="truth")


def test_fingertips_of_the_dataset(tmp_path):
    """On HO3D's fingertips: exact keypoints are reached, and the joints written are those of the refined mesh in that set."""
    write_files(tmp_path, noise_px=0.0, tips="ho3d")
    run(tmp_path, solver={"pose_prior": 0.0})
    found = read_predictions(tmp_path / "out" / "predictions.npz")
    rotations, shape = (torch.from_numpy(np.array(found[key])) for key in ("pred_rotations", "pred_shape"))
    joints = HAND.joints(HAND(rotations, shape), "ho3d").numpy()
    assert found.joint_set == ("ho3d", "chain")
    np.testing.assert_allclose(found["pred_joints"], joints - joints[:, :1], atol=2e-6)


def test_regressed_joints_are_refused(tmp_path):
    """FreiHAND's joints are not chain joints: one line says what can be refined."""
    write_files(tmp_path)
    for name in ("mesh", "uv"):
        found = read_predictions(tmp_path / f"{name}.npz")
        meta = {**found.meta, "dataset": {"dataset": "toy", "joint_set": ["freihand", "regressed"]}}
        columns = {key: np.array(found[key]) for key in found.columns}
        with PredictionsWriter(tmp_path / f"{name}.npz", meta) as writer:
            writer.append(**columns)
    refused(tmp_path, "its joints are regressed from the posed mesh")
