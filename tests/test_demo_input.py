"""Demo: wrong pictures, boxes, cameras and identities: one line each, and nothing half-written."""
import json
import re

import cv2
import numpy as np
import pytest
import torch

from src.demo import DemoOptions, demo
from src.identity import Identity, write_identity
from tests.demo_cases import (
    CPU,
    HAND,
    CropLike,
    K,
    Oracle,
    Truth,
    a_hand,
    picture_of,
    save,
    scene,
)
from utils.batch import Prediction
from utils.errors import InputError


def test_one_broken_picture_does_not_stop_the_others(tmp_path):
    """A truncated picture between good ones: the good ones are done, one line names the broken one, nothing of it is left."""
    truth = a_hand()
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        cv2.imwrite(str(tmp_path / "in" / name), picture_of(truth))
    data = (tmp_path / "in" / "b.jpg").read_bytes()
    (tmp_path / "in" / "b.jpg").write_bytes(data[:len(data) // 2])
    expected = "1 of 3 pictures could not be shown: .*b.jpg: the picture is cut short .*other 2 are in"
    with pytest.raises(InputError, match=expected) as caught:
        demo(Oracle(truth), HAND, DemoOptions(input=str(tmp_path / "in")), tmp_path / "out", CropLike(), CPU)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{n}.{s}" for n in "ac" for s in ("json", "ply", "png")]


def test_many_that_fail_alike_are_counted(tmp_path):
    """A folder of K without any of them: one short line before any picture; with one of them: the first three, and a count."""
    truth = a_hand()
    (tmp_path / "in").mkdir()
    for number in range(6):
        save(tmp_path / "in" / f"{number}_img.png", picture_of(truth))
    method, options = Oracle(truth), DemoOptions(input=str(tmp_path / "in"), K=str(tmp_path / "in"))
    told = f"demo.K={tmp_path / 'in'}: no camera matrix for 6 of 6 pictures (first: 0_img.png; expected 0_K.npy or 0_K.json); "
    with pytest.raises(InputError, match="^" + re.escape(told)):
        demo(method, HAND, options, tmp_path / "out", CropLike(), CPU)
    assert not method.seen
    np.save(tmp_path / "in" / "5_K.npy", K)
    with pytest.raises(InputError, match=r"^5 of 6 pictures could not be shown: .* \| and 2 more; the other is in") as caught:
        demo(method, HAND, options, tmp_path / "out", CropLike(), CPU)
    assert str(caught.value).count("no camera matrix for") == 3
    assert "0_img.npy, 0_img.json, 0_img_K.npy, 0_img_K.json, 0_K.npy, 0_K.json |" in str(caught.value)


def test_what_no_picture_can_mend_is_said_once(tmp_path):
    """A method without a mesh, with nobody to find its 2D joints, or without rotations for an identity's shape: one short line
    for all pictures, and no answer shown; one picture is one picture."""
    truth = a_hand()
    (tmp_path / "in").mkdir()
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", picture_of(truth))
    options = DemoOptions(input=str(tmp_path / "in"))
    flat, blind, late = Oracle(truth), Oracle(truth), Oracle(truth)
    flat.compares, blind.sees_keypoints = frozenset({"joints_uv"}), True
    late.decode = lambda out, batch: Prediction(joints_uv=torch.zeros(1, 21, 2))
    for method, words, looks in ((flat, "this model predicts no mesh", 0), (blind, "demo.keypoints: this model is told where", 0),
                                 (late, "this model predicts no mesh", 1)):
        for more in ({}, {"track": True}):
            method.seen.clear()
            with pytest.raises(InputError, match="^" + words):
                demo(method, HAND, options.model_copy(update=more), tmp_path / "out", CropLike(), CPU)
            assert len(method.seen) == looks and not list((tmp_path / "out").glob("*"))
    one = options.model_copy(update={"input": str(tmp_path / "in" / "1.png")})
    done = demo(Oracle(truth), HAND, one, tmp_path / "out", CropLike(), CPU)
    assert done["text"].startswith("1 picture, 1 hand -> ")


def spoiled(truth: Truth) -> Truth:
    """With one NaN."""
    return truth._replace(verts=truth.verts.clone().index_fill_(0, torch.tensor([5]), float("nan")))


@pytest.mark.parametrize(("files", "options", "message"), [
    ({}, {"input": "nowhere.jpg"}, "demo.input: expected a picture, a folder of pictures or a video, found nothing at"),
    ({}, {"input": "."}, "demo.input: no picture in the folder"),
    ({"a.png": b""}, {"input": "a.png"}, "a.png: expected a picture .* found an empty file"),
    ({"a.png": b"not a picture"}, {"input": "a.png"}, "a.png: expected a picture .* found another kind of file"),
    ({"b.json": b"[1, 2"}, {"boxes": "b.json"}, "b.json: expected json"),
    ({"b.json": b"[1, 2, 0, 4]"}, {"boxes": "b.json"}, r"b.json: the file: expected \[left, .* found \[1, 2, 0, 4\]"),
    ({"b.json": b"[1, 2, 3]"}, {"boxes": "b.json"}, "b.json: the file: expected"),
    ({"b.json": b"[1, 2, 3, NaN]"}, {"boxes": "b.json"}, "b.json: the file: expected"),
    ({"b.json": b"[]"}, {"boxes": "b.json"}, "b.json: the file: expected"),
    ({"b.json": b'{"hand.png": {"box": [1, 2, 3, 4], "side": "up"}}'}, {"boxes": "b.json"}, "b.json: hand.png: expected"),
    ({"b.json": b'{"o.png": [1, 2, 3, 4]}'}, {"boxes": "b.json"}, "hand.png: the box file has no entry .*; it has o.png"),
    ({"b.json": b'{"images": [{"id": 1}], "annotations": []}'}, {"boxes": "b.json"}, "b.json: a COCO file whose images"),
    ({}, {"boxes": "b.json"}, "b.json: expected a file, found nothing"),
    ({}, {"K": "k.npy"}, "k.npy: expected a file, found nothing"),
    ({"k.npy": b"no array"}, {"K": "k.npy"}, "k.npy: expected an array of numpy"),
    ({"k.json": b"[[1, 0, 2], [0, 1, 2]]"}, {"K": "k.json"}, "k.json: expected a camera matrix"),
    ({"k.json": b"[[0, 0, 2], [0, 1, 2], [0, 0, 1]]"}, {"K": "k.json"}, "k.json: expected a camera matrix"),
    ({"k.json": b"[[1, 0, 2], [0, 1, Infinity], [0, 0, 1]]"}, {"K": "k.json"}, "k.json: expected a camera matrix"),
    ({"k.json": b'{"b.png": 1}'}, {"K": "k.json"}, "k.json: no camera matrix of 'hand.png'"),
    ({}, {"K": "."}, r"demo.K=.: no camera matrix for hand.png \(expected hand_K.npy or hand_K.json\); leave demo.K out "
                     r"\(demo.K=null\) for a nominal camera, or give demo.fov$"),
    ({"photo.jpg": b"\xff\xd8"}, {"K": "photo.jpg"}, "^demo.K: expected .npy or .json, found photo.jpg"),
    ({"k.json": b"[]"}, {"K": "k.json", "fov": 50}, "demo.K and demo.fov are both given"),
])
def test_bad_input(tmp_path, monkeypatch, files, options, message):
    """Each wrong file or option: one line that names it, and nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "hand.png", picture_of(a_hand()))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        demo(Oracle(a_hand()), HAND, DemoOptions(**{"input": "in/hand.png", **options}), tmp_path / "out", CropLike(), CPU)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_prediction_that_is_not_finite(scene, tmp_path):
    """A checkpoint that answers NaN: one line, nothing written."""
    truth, _, options = scene
    with pytest.raises(InputError, match="hand.png: the prediction is not finite; the checkpoint c.pt is broken"):
        demo(Oracle(spoiled(truth)), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU, checkpoint="c.pt")
    assert not (tmp_path / "out").exists()


def test_results_do_not_mix_with_the_pictures(scene, tmp_path):
    """The pictures' own folder as output is refused."""
    truth, path, options = scene
    with pytest.raises(InputError, match="is the folder of the pictures"):
        demo(Oracle(truth), HAND, DemoOptions(**options), path.parent, CropLike(), CPU)


def test_identity_is_told_where_it_is_needed(scene, tmp_path):
    """An identity-aware model is told the file's shape; without one, or with one of another hand model, one line says so."""
    truth, _, options = scene
    shape = np.linspace(1, -1, 10)
    identity = str(tmp_path / "7.json")
    model = {"name": HAND.name, "sha256": HAND.sha256}
    write_identity(identity, Identity(subject=7, shape=shape, hand=model, n=20, method="random"))
    oracle = Oracle(truth, told=True)
    demo(oracle, HAND, DemoOptions(**options, identity=identity), tmp_path / "out", CropLike(), CPU)
    np.testing.assert_allclose(oracle.seen[0].identity[0], shape, rtol=1e-6)
    assert oracle.seen[0].subject.item() == 7
    said = json.loads((tmp_path / "out" / "hand.json").read_text())
    assert said["identity"]["file"] == identity and said["identity"]["subject"] == 7
    np.testing.assert_allclose(said["hands"][0]["shape"], shape, rtol=1e-6)
    with pytest.raises(InputError, match="demo.identity: this model is told whose hand it sees; set demo.identity"):
        demo(oracle, HAND, DemoOptions(**options), tmp_path / "no", CropLike(), CPU)
    write_identity(identity, Identity(subject=7, shape=shape, hand={"name": "MANO", "sha256": "ab" * 32}, n=20, method="random"))
    with pytest.raises(InputError, match="7.json: a shape of the hand model MANO"):
        demo(oracle, HAND, DemoOptions(**options, identity=identity), tmp_path / "no", CropLike(), CPU)
    assert not (tmp_path / "no").exists()
