"""src/evaluate.py: `run.py test` as a whole on toy methods: what is written, protocols in the camera, what is refused."""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from eval_cases import toy_hand
from torch import Tensor

from src.evaluate import evaluate
from src.identity import Identity, write_identity
from src.method import Method
from src.predict import TestOptions
from utils.batch import Batch, Prediction
from utils.camera import K_of_crop, project, transform_uv
from utils.errors import InputError
from utils.hand import HandModel
from utils.official_export import export
from utils.predictions import PredictionsWriter, read_predictions
from utils.results import read_scores
from utils.rotation import matrix_from_axis_angle

COUNT = 12


class Picture(NamedTuple):
    """What the report draws on."""

    image: np.ndarray
    K: np.ndarray


class Source:
    """Poses of two people, whose hands are of shapes 1.5 and -1.5 in the first coefficient, seen in crops of scale 1.5."""

    provides = frozenset({"joints", "verts", "shape", "root", "joints_uv"})

    def __init__(self, hand: HandModel):
        self.hand = hand

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        return {"index": np.int64(key[1])}

    def batch(self, raw: dict[str, Tensor]) -> Batch:
        index = raw["index"]
        subject = 8 + index % 2
        shape = torch.zeros(len(index), 10)
        shape[:, 0] = 1.5 - 3.0 * (index % 2)
        rotations = matrix_from_axis_angle(torch.sin(index[:, None, None] * 0.7 + torch.arange(48.0).view(16, 3)) * 0.2)
        posed = self.hand(rotations, shape)
        root = torch.tensor([0.02, 0.01, 0.6]).expand(len(index), 3)
        move = (root - posed.chain[:, 0])[:, None]
        joints = self.hand.joints(posed) + move
        K = torch.tensor([[500.0, 0, 160], [0, 500, 120], [0, 0, 1]]).expand(len(index), 3, 3)
        crop = torch.tensor([[1.5, 0, -150], [0, 1.5, -80], [0, 0, 1]]).expand(len(index), 3, 3)
        everywhere = torch.ones(len(index), dtype=torch.bool)
        return Batch(torch.zeros(len(index), 3, 4, 4), K_of_crop(K, crop), crop, index % 3 == 0, index, subject, joints=joints,
                     verts=posed.verts + move, rotations=rotations, root=root, shape=shape, identity=shape,
                     joints_uv=transform_uv(crop, project(joints, K)), has_joints=everywhere, has_verts=everywhere,
                     has_shape=everywhere, has_uv=everywhere)

    def sample_name(self, index: int) -> str:
        return f"toy/{index:03d}"

    def protocol(self) -> dict:
        return {"dataset": "toy", "split": "test"}

    def columns(self, indices) -> dict[str, np.ndarray]:
        return {}

    def picture(self, index: int) -> Picture:
        return Picture(np.full((240, 320, 3), 40, np.uint8), np.array([[500.0, 0, 160], [0, 500, 120], [0, 0, 1]]))


class Toy(Method):
    """Answers with the true pose and the mean shape (predicted), the told one, or with 2D joints alone, and beside the mesh."""

    def __init__(self, hand: HandModel, told: bool = False, mesh: bool = True, uv: bool = False):
        super().__init__()
        self.hand, self.told, self.mesh, self.uv = hand, told, mesh, uv
        self.needs = frozenset({"identity"}) if told else frozenset()
        self.compares = frozenset({"joints", "verts"} if mesh else ()) | ({"joints_uv"} if uv else set())
        self.empty = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> Tensor:
        return self.empty

    def losses(self, out: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {}

    def decode(self, out: Tensor, batch: Batch) -> Prediction:
        found = Prediction()
        if self.mesh:
            shape = batch.identity if self.told else torch.zeros(len(batch), 10)
            posed = self.hand(batch.rotations, shape)
            wrist = posed.chain[:, :1]
            found = Prediction(posed.verts - wrist, self.hand.joints(posed) - wrist, rotations=batch.rotations, shape=shape)
        return found._replace(joints_uv=batch.joints_uv, uv_confidence=torch.ones(len(batch), 21)) if self.uv else found


@pytest.fixture(scope="module")
def hand() -> HandModel:
    """A toy hand, float32 as in a method."""
    return toy_hand().float()


@pytest.fixture(scope="module")
def inputs(hand, tmp_path_factory) -> Path:
    """A folder with the 2D joints of the frames, true ones by a 2D network, and identities a tenth off the truth."""
    folder = tmp_path_factory.mktemp("inputs")
    run(Toy(hand, mesh=False, uv=True), hand, folder / "uv", pictures=3)
    (folder / "identities").mkdir()
    for subject, first in ((8, 1.4), (9, -1.4)):
        shape = np.array([first] + [0.0] * 9)
        write_identity(folder / f"identities/{subject}.json", Identity(subject, shape, hand.info, 1, "random", frames=("x/1",)))
    return folder


def run(method: Method, hand: HandModel, folder: Path, **options) -> str:
    """`run.py test`; its table."""
    chosen = TestOptions(bootstrap=100, **{"report": True, "pictures": 0, **options})
    return evaluate(method, Source(hand), chosen, folder, hand=hand, device=torch.device("cpu"),
                    meta={"run": "toy", "method": "toy", "hand": hand.info})


def test_a_2d_network_is_tested_by_its_pixels(inputs):
    """2D joints alone: predictions, scores, samples and page are written; errors are those of float32."""
    scores = read_scores(inputs / "uv")
    assert scores.summary["metrics"]["uv_px"]["mean"] < 1e-3 and "camera" not in scores.summary
    assert (inputs / "uv/report.html").read_text().count("data:image/jpeg") == 9
    assert "pred_joints" not in read_predictions(inputs / "uv/predictions.npz")


def test_a_benchmark_without_its_labels_is_predicted(hand, tmp_path, monkeypatch):
    """Predictions are written, no scores, none of an earlier test are left, and the answer says where the labels are."""
    assert "MPJPE" in run(Toy(hand), hand, tmp_path)
    monkeypatch.setattr(Source, "provides", frozenset({"root"}))
    monkeypatch.setattr(Source, "protocol", lambda self: {"dataset": "toy", "split": "test", "no_labels": "ask the authors"})
    told = run(Toy(hand), hand, tmp_path)
    assert told.endswith("not scored, as the split has no joints, verts: ask the authors")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["predictions.npz"]
    assert len(read_predictions(tmp_path / "predictions.npz")) == COUNT


def test_three_protocols_from_given_keypoints(hand, inputs, tmp_path):
    """The true pose with the mean shape: K errs by the hand's size, K + true shape by nothing, K + identity by a fifteenth of K;
    the predictions file holds the keypoints and says whose they are, and the page and the table show the three."""
    table = run(Toy(hand), hand, tmp_path, keypoints=str(inputs / "uv/predictions.npz"),
                camera_identity=str(inputs / "identities"))
    scores = read_scores(tmp_path)
    means = {protocol: found["depth_mm"]["mean"] for protocol, found in scores.summary["camera"].items()}
    assert list(means) == ["K", "K + identity", "K + true shape"]
    assert means["K"] > 4 and means["K + true shape"] < 0.05
    assert means["K + identity"] == pytest.approx(means["K"] / 15, rel=0.2)
    assert scores.summary["camera_ratios"]["K + identity / K"]["n"] == COUNT
    predictions = read_predictions(tmp_path / "predictions.npz")
    np.testing.assert_allclose(predictions["pred_joints_uv"], predictions["true_joints_uv"], atol=1e-3)
    assert predictions.meta["keypoints"]["path"].endswith("uv/predictions.npz") and "pred_root" not in predictions
    assert "K + identity" in table and "ratio of depth errors" in table
    page = (tmp_path / "report.html").read_text()
    assert "<h2>In the camera</h2>" in page and "K + true shape (given: the camera matrix, and the true shape)" in page


def test_own_2d_joints_place_a_method(hand, tmp_path):
    """A method that predicts both needs no file; given one, it is refused."""
    run(Toy(hand, uv=True), hand, tmp_path / "a", report=False)
    scores = read_scores(tmp_path / "a")
    assert list(scores.summary["camera"]) == ["K", "K + true shape"] and not (tmp_path / "a/report.html").exists()
    with pytest.raises(InputError, match="test.keypoints: this method predicts 2D joints itself"):
        run(Toy(hand, uv=True), hand, tmp_path / "b", keypoints=str(tmp_path / "a/predictions.npz"))


class Blind(Toy):
    """Its 2D joints have no confidence at all."""

    def decode(self, out: Tensor, batch: Batch) -> Prediction:
        return super().decode(out, batch)._replace(uv_confidence=torch.zeros(len(batch), 21))


def test_own_2d_joints_that_place_nothing(hand, inputs, tmp_path, caplog):
    """No frame can be placed: scored about the wrist all the same, and told; by a file of such joints it is refused."""
    run(Blind(hand, uv=True), hand, tmp_path / "blind")
    scores = read_scores(tmp_path / "blind")
    assert "camera" not in scores.summary and scores.summary["metrics"]["mpjpe_mm"]["mean"] > 0
    told = [record.message for record in caplog.records if record.name.startswith("src.")]
    assert [line for line in told if "camera" in line] == [
        f"in the camera, K: not scored: the method's own 2D joints place none of {scores.summary['n']} frames (fewer than two "
        "keypoints); train longer?"]
    run(Blind(hand, mesh=False, uv=True), hand, tmp_path / "uv")
    with pytest.raises(InputError, match="no frame can be scored in the camera"):
        run(Toy(hand), hand, tmp_path / "given", keypoints=str(tmp_path / "uv/predictions.npz"))


def test_a_told_method_is_tested_once_per_protocol(hand, inputs, tmp_path):
    """identity null, a folder, mean: K + true shape, K + identity, K; told the mean hand, the shape error is that of zeros."""
    keypoints = str(inputs / "uv/predictions.npz")
    for identity, protocol, told, depth in ((None, "K + true shape", "truth", 0.0), (str(inputs / "identities"), "K + identity",
                                            "identities", None), ("mean", "K", "mean", None)):
        table = run(Toy(hand, told=True), hand, tmp_path / told, keypoints=keypoints, identity=identity, report=False)
        summary = read_scores(tmp_path / told).summary
        assert list(summary["camera"]) == [protocol] and f"toy: {told}" not in table and f": {told}." in table
        if depth is not None:
            assert summary["camera"][protocol]["depth_mm"]["mean"] < 0.05
    assert summary["metrics"]["shape_error"]["mean"] == pytest.approx(0.15, abs=1e-6)
    assert (np.asarray(read_predictions(tmp_path / "mean/predictions.npz")["identity"]) == 0).all()


def test_wrong_options_are_refused_before_work(hand, inputs, tmp_path):
    """Missing frames, shapes without keypoints, shapes for a told method, the mean hand for one that is told none: one line each,
    and no predictions."""
    found = read_predictions(inputs / "uv/predictions.npz")
    with PredictionsWriter(tmp_path / "few.npz", found.meta) as writer:
        five = {key: np.array(found[key])[:5] for key in found.columns}
        writer.append(name=five.pop("name").tolist(), **five)
    keypoints, identities = str(inputs / "uv/predictions.npz"), str(inputs / "identities")
    for method, options, message in (
            (Toy(hand), {"keypoints": str(tmp_path / "few.npz")}, r"few.npz lacks 7 of the 12 frames \(first: toy/005\)"),
            (Toy(hand), {"camera_identity": identities}, "give test.keypoints as well"),
            (Toy(hand, told=True), {"camera_identity": identities, "keypoints": keypoints}, "tell it with test.identity"),
            (Toy(hand), {"identity": "mean"}, "test.identity: this method is never told a shape"),
            (Toy(hand), {"keypoints": str(tmp_path / "none.npz")}, "none.npz: expected a file, found nothing")):
        with pytest.raises(InputError, match=message):
            run(method, hand, tmp_path / "out", **options)
        assert not (tmp_path / "out/predictions.npz").exists()
    assert run(Toy(hand), hand, tmp_path / "out", keypoints=str(tmp_path / "few.npz"), frames=1)  # toy/000 is there


def test_source_keeps_the_contract(hand):
    """The toy source's pixels are the projections of its joints, so that the tests above test the program."""
    batch = Source(hand).batch({"index": torch.arange(COUNT)})
    torch.testing.assert_close(project(batch.joints, batch.K), batch.joints_uv, rtol=1e-4, atol=1e-3)


class Evaluation(Source):
    """The same frames as an official evaluation list, in another order than they are read."""

    def protocol(self) -> dict:
        return {"dataset": "toy", "split": "evaluation", "official": "ho3d_v2"}

    def columns(self, indices) -> dict[str, np.ndarray]:
        return {"official_index": COUNT - 1 - np.asarray(indices)}


def test_official_list_gets_its_names_and_the_way_to_its_file(hand, tmp_path, caplog):
    """An HO3D split: scores.json has the aligned values by name (no wrist is predicted), no DexYCB text, and the log says how to
    export, which then tells of the missing wrist."""
    caplog.set_level("INFO")
    evaluate(Toy(hand), Evaluation(hand), TestOptions(bootstrap=100, report=False), tmp_path, hand=hand,
             device=torch.device("cpu"), meta={"run": "toy", "method": "toy", "hand": hand.info})
    official = read_scores(tmp_path).summary["official"]
    assert 0 < official["xyz_procrustes_al_mean3d"] < 1 and "xyz_mean3d" not in official
    assert not (tmp_path / "dexycb_results.txt").exists()
    assert f"run.py export ho3d_v2 {tmp_path / 'predictions.npz'} --out pred.zip" in caplog.text
    with pytest.raises(InputError, match="column pred_root.* found none; place the hands in the camera first"):
        export("ho3d_v2", tmp_path / "predictions.npz", tmp_path / "pred.zip")
