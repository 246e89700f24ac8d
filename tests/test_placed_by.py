"""What a registered root stands on (utils.batch.ROOT_BY), told by method, tests, panels and demo; a stand-in is no answer."""
import json
import logging

import numpy as np
import pytest
import torch
from cmr_cases import free_pyramid as pyramid_in
from cmr_cases import hands, small

from src.cmr import Out
from src.demo import DemoOptions, demo
from src.demo_hand import BY_BOX, BY_KEYPOINTS
from src.plots import plot_of
from src.predict import predict
from src.register import BLEND, KEYPOINTS, NONE, SILHOUETTE, RegisterOptions, Registration, register
from src.silhouette import extents
from tests.demo_cases import CPU, HAND, CropLike, Oracle, scene
from tests.test_plots import TRUTH
from tests.test_plots import sample as a_crop
from tests.test_predict import ToyMethod, ToySource
from tests.test_predict import hand as toy
from utils.batch import ROOT_BY, UNSTORED, Batch, Prediction
from utils.camera import project
from utils.mesh_files import read_ply
from utils.predictions import read_predictions

__all__ = ["scene", "toy"]
EMPTY, FULL = -20.0, 20.0  # logits
STAND_IN = torch.tensor([[0.0, 0.0, 0.6]])


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    return pyramid_in(tmp_path_factory.mktemp("pyramid"))


def maps(batch: Batch, joints: bool, mask: bool, pixels: int = 32) -> torch.Tensor:
    """Logits (1,22,c,c) of peaks at the true joints and of the true silhouette, or empty ones."""
    drawn = torch.full((1, 22, pixels, pixels), EMPTY)
    if joints:
        x, y = (batch.joints_uv[0] / 2).round().long().clamp(0, pixels - 1).T
        drawn[0, torch.arange(21), y, x] = FULL
    if mask:
        drawn[0, 21] = torch.where(batch.mask[0, ::2, ::2] > 0, FULL, EMPTY)
    return drawn


@pytest.mark.parametrize("joints, mask, numbers", [(True, True, (1, 2, 3)), (True, False, (4,)), (False, True, (5,)),
                                                   (False, False, (0,))])
def test_method_tells_it(joints, mask, numbers, pyramid):
    """CMR's answer says what was seen: both, 2D joints alone, the silhouette alone, or nothing, and then stands at the start."""
    method, batch = small(pyramid, variant="g"), hands(1)
    meshes = method.decoder.levels((batch.verts - batch.root[:, None]) / 0.2)
    drawn = maps(batch, joints, mask)
    pred = method.decode(Out([drawn[:, :21], drawn], meshes), batch)
    assert pred.root_by.tolist()[0] in numbers and pred.root_by.shape == (1,)
    start = torch.equal(pred.root, STAND_IN)
    assert start == (numbers == (0,)) and (start or (pred.root - batch.root).norm() < 0.15)


def test_numbers_are_the_words_of_what_counted():
    """Each source with and without a second answer has the number whose words name it; none of them is stored by row."""
    source = torch.tensor([NONE, KEYPOINTS, KEYPOINTS, SILHOUETTE, SILHOUETTE, BLEND, BLEND])
    distance = torch.tensor([torch.nan, torch.nan, 0.01, torch.nan, 0.1, torch.nan, 0.04])
    by = Registration(torch.zeros(7, 3), torch.ones(7, dtype=torch.bool), source, distance).by
    assert by.tolist() == [0, 4, 1, 5, 2, 5, 3] and len(ROOT_BY) == 6
    for number, words in {0: "nothing", 1: "agrees", 2: "disagrees", 3: "2D joints and silhouette", 4: "no silhouette",
                          5: "no confident 2D joint"}.items():
        assert words in ROOT_BY[number]
    assert {"root_by", "mask"} <= UNSTORED


@pytest.mark.parametrize("solver, source", [("fast", SILHOUETTE), ("faithful", BLEND)])
def test_a_silhouette_that_agrees_with_the_start_was_seen(solver, source):
    """A hand whose silhouette alone puts it where the search starts is placed by the silhouette, not by nothing."""
    batch = hands(1)
    verts = (batch.verts - batch.verts.mean(1, keepdim=True)).double()
    uv = project(verts + STAND_IN.double(), batch.K.double())
    found = register(verts, verts[:, :21], torch.zeros(1, 21, 2), torch.zeros(1, 21), batch.K, 64, extents(uv),
                     options=RegisterOptions(solver=solver))
    assert (found.translation - STAND_IN).norm() < 0.01
    assert found.source.item() == source and found.by.item() == 5


class Placed(ToyMethod):
    """Says by row number what its root stands on."""

    def decode(self, out, batch: Batch) -> Prediction:
        return super().decode(out, batch)._replace(root=torch.ones(len(batch), 3), root_by=batch.index % 5)


def test_a_test_counts_it(toy, tmp_path, caplog):
    """The predictions file counts the rows by words, over all batches, and the log has one line with them; no column for it."""
    caplog.set_level(logging.INFO)
    predict(Placed(toy, told=False), ToySource(toy, 12), tmp_path / "p.npz", device=CPU, batch=5, meta={"hand": toy.info})
    file = read_predictions(tmp_path / "p.npz")
    assert file.meta["placed_by"] == {ROOT_BY[0]: 3, ROOT_BY[1]: 3, ROOT_BY[2]: 2, ROOT_BY[3]: 2, ROOT_BY[4]: 2}
    assert not any("root_by" in name for name in file.columns) and "pred_root" in file
    (line,) = [record.getMessage() for record in caplog.records if "placed by" in record.getMessage()]
    assert f"{ROOT_BY[0]}: 3; {ROOT_BY[1]}: 3" in line and ROOT_BY[5] not in line


def test_methods_that_register_nothing_say_nothing(toy, tmp_path, caplog):
    """A root by a head of its own, or none: no count, no line."""
    caplog.set_level(logging.INFO)
    predict(ToyMethod(toy, told=False), ToySource(toy), tmp_path / "p.npz", device=CPU, meta={"hand": toy.info})
    assert "placed_by" not in read_predictions(tmp_path / "p.npz").meta and "placed by" not in caplog.text


def test_panels_do_not_call_a_stand_in_predicted():
    """test.plots: a registered root says what it stands on; a stand-in gives way to 2D joints, then to the true wrist."""
    seen = Prediction(TRUTH.verts[None], TRUTH.joints[None], root=TRUTH.root[None], root_by=torch.tensor([3.0]))
    plot = plot_of(a_crop(), seen, HAND.faces.numpy())
    assert plot.absolute and plot.place == f"predicted: {ROOT_BY[3]}"
    np.testing.assert_allclose(plot.verts, TRUTH.verts + TRUTH.root, atol=1e-6)
    lost = seen._replace(root=STAND_IN, root_by=torch.tensor([0.0]))
    plot = plot_of(a_crop(root=TRUTH.root[None]), lost, HAND.faces.numpy())
    assert not plot.absolute and plot.notes.place == plot.place == "placed at the true wrist"
    uv = project(TRUTH.joints + TRUTH.root, a_crop().K[0])[None]
    plot = plot_of(a_crop(), lost._replace(joints_uv=uv), HAND.faces.numpy())
    assert plot.absolute and plot.place == BY_KEYPOINTS
    np.testing.assert_allclose(plot.joints, TRUTH.joints + TRUTH.root, atol=1e-4)


class Registered(Oracle):
    """The truth at its root, or for `by` 0 at the start of the search, with a mask and 2D joints or without."""

    def __init__(self, truth, by: int, mask: bool = True, joints: bool = False):
        super().__init__(truth, with_root=True)
        self.by, self.mask, self.joints = by, mask, joints

    def decode(self, out, batch: Batch) -> Prediction:
        uv = project(out.joints + out.root, batch.K) if self.joints else None
        return super().decode(out, batch)._replace(
            root=out.root[None] if self.by else STAND_IN, root_by=torch.tensor([self.by]), joints_uv=uv,
            mask=torch.zeros(1, 16, 16) if self.mask else None)


def shown(method, options, tmp_path) -> tuple[dict, str, np.ndarray]:
    """The JSON's hand, the mesh file's comment, and its vertices."""
    demo(method, HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU)
    mesh = tmp_path / "out" / "hand.ply"
    comment = next(line for line in mesh.read_bytes().split(b"\n") if line.startswith(b"comment")).decode()
    return json.loads((tmp_path / "out" / "hand.json").read_text())["hands"][0], comment, read_ply(mesh)[0]


@pytest.mark.parametrize("by, mask, warned", [(1, True, False), (2, True, False), (3, True, False), (4, True, True),
                                              (5, True, True), (4, False, False)])
def test_demo_tells_what_a_root_stands_on(by, mask, warned, scene, tmp_path, caplog):
    """JSON and mesh file have the words; a line warns where 2D joints or a drawn silhouette did not count."""
    truth, path, options = scene
    hand, comment, verts = shown(Registered(truth, by, mask), options, tmp_path)
    assert hand["root_source"] == f"predicted: {ROOT_BY[by]}" and comment.endswith(f"root predicted: {ROOT_BY[by]}")
    np.testing.assert_allclose(verts, truth.verts + truth.root, atol=1e-6)
    assert (f"{path}: placed by {ROOT_BY[by]}" in caplog.text) == warned


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("joints", [True, False])
def test_demo_replaces_a_stand_in(joints, mask, scene, tmp_path, caplog):
    """A root that stands on nothing is not shown: 2D joints place the hand, else its box; one line warns, mask drawn or not."""
    truth, path, options = scene
    hand, _, verts = shown(Registered(truth, 0, mask, joints), options, tmp_path)
    assert caplog.text.count(f"{path}: placed by {ROOT_BY[0]}") == 1
    assert hand["root_source"] == (BY_KEYPOINTS if joints else BY_BOX)
    off = np.linalg.norm(np.asarray(hand["root"]) - truth.root.numpy())
    assert off < (1e-3 if joints else 0.2) and not np.allclose(hand["root"], STAND_IN)
    np.testing.assert_allclose(verts, truth.verts + torch.tensor(hand["root"]), atol=1e-5)
