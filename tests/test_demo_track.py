"""Demo on tracks: videos and folders, the shape that an identity holds, jitter with and without, and inputs that break off."""
import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from src.demo import DemoOptions, demo
from src.demo_hand import BY_BOX, BY_KEYPOINTS, HELD, PREDICTED, Keypoints, Seen, View
from src.demo_refine import REFINED
from src.demo_track import Smoother, SmoothOptions
from src.demo_video import Frames, video_out
from src.identity import Identity, write_identity
from tests.demo_cases import CPU, HAND, HEIGHT, WIDTH, CropLike, K, box_of, iou, save, save_json, silhouette
from tests.track_cases import NoisyOracle, cut_file, frames_of, moving_hand, pictures_of, video_of
from utils.errors import InputError
from utils.hand import mirror_points
from utils.mesh_files import read_ply

TRUTHS = moving_hand(12)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """The track's frames."""
    return pictures_of(TRUTHS)


@pytest.fixture
def clip(tmp_path, pictures) -> dict:
    """A video of the track with boxes by frame number and K, as options."""
    path = video_of(tmp_path / "clip.avi", pictures)
    return {"input": str(path), "K": save_json(tmp_path / "K.json", K.tolist()),
            "boxes": save_json(tmp_path / "boxes.json", {str(t): box_of(truth) for t, truth in enumerate(TRUTHS)})}


@pytest.fixture
def identity(tmp_path) -> str:
    """An identity file of the hand that the tests show."""
    model = {"name": HAND.name, "sha256": HAND.sha256}
    person = Identity(subject=7, shape=TRUTHS[0].shape.double().numpy(), hand=model, n=20, method="random")
    write_identity(tmp_path / "7.json", person)
    return str(tmp_path / "7.json")


def shown(options: dict, out: Path, method, **more) -> tuple[dict, list[dict], dict]:
    """The demo's summary, its lines by frame, and what it returned."""
    result = demo(method, HAND, DemoOptions(**options), out, CropLike(), CPU, **more)
    name = Path(options["input"]).stem
    return (json.loads((out / f"{name}.json").read_text()),
            [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()], result)


def test_video(clip, tmp_path, pictures):
    """A video without noise or filter: every frame's hand lies where the truth is, in numbers and in the overlay video."""
    said, lines, result = shown({**clip, "smooth": "none"}, tmp_path / "out", NoisyOracle(TRUTHS))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clip.json", "clip.jsonl", "clip.mp4"]
    assert (result["pictures"], result["hands"]) == (12, 12) and "right hand, 12 frames" in result["text"]
    assert [line["frame"] for line in lines] == list(range(12)) and lines[3]["name"] == "000003"
    for line, truth in zip(lines, TRUTHS):
        (hand,) = line["hands"]
        np.testing.assert_allclose(hand["root"], truth.root, atol=1e-4)
        np.testing.assert_allclose(list(hand["joints"].values()), truth.joints, atol=1e-5)
        assert hand["root_source"] == BY_BOX and hand["shape_source"] == PREDICTED and hand["mesh"] is None
        assert line["K_source"].startswith("file ") and line["fault"] is None
    assert said["fps"] == 25 and said["fps_source"] == "the video" and said["size"] == [WIDTH, HEIGHT]
    drawn = frames_of(tmp_path / "out" / "clip.mp4")
    assert len(drawn) == 12
    for frame, picture, truth in zip(drawn, pictures, TRUTHS):
        changed = np.abs(frame.astype(int) - picture).max(-1) > 60
        assert iou(changed, silhouette(truth.verts + truth.root, K)) > 0.8


def test_folder_is_the_same_track(clip, tmp_path, pictures):
    """Frames as pictures, named without leading zeros: the same order and joints as the video's, at a stated rate; meshes asked
    for lie beside."""
    (tmp_path / "in").mkdir()
    for t, picture in enumerate(pictures):
        save(tmp_path / "in" / f"{t}.png", picture)
    boxes = save_json(tmp_path / "b.json", {f"{t}.png": box_of(truth) for t, truth in enumerate(TRUTHS)})
    options = {**clip, "input": str(tmp_path / "in"), "boxes": boxes, "track": True, "fps": 25, "meshes": True}
    said, lines, _ = shown(options, tmp_path / "out", NoisyOracle(TRUTHS, 0.02))
    _, filmed, _ = shown(clip, tmp_path / "film", NoisyOracle(TRUTHS, 0.02))
    assert [line["name"] for line in lines] == [f"{t}.png" for t in range(12)] and said["fps_source"] == "stated"
    for a, b in zip(lines, filmed):
        np.testing.assert_allclose(list(a["hands"][0]["joints"].values()), list(b["hands"][0]["joints"].values()), atol=1e-9)
        assert a["hands"][0]["mesh"] == f"in/{a['frame']}_right.ply"
    verts, _ = read_ply(tmp_path / "out" / "in" / "5_right.ply")
    joints = torch.tensor(verts) - torch.tensor(lines[5]["hands"][0]["root"])
    assert torch.isfinite(joints).all() and len(verts) == 778


def test_identity_holds_the_shape(clip, identity, tmp_path):
    """A method that predicts a noisy shape and noisy rotations: the identity's shape in every frame, the method's rotations; the
    size's spread is zero, jitter is at least halved, and the report has all four."""
    said, lines, result = shown({**clip, "identity": identity}, tmp_path / "out", NoisyOracle(TRUTHS, 0.05))
    tracks = said["hands"]["right"]["tracks"]
    assert list(tracks) == ["own shape", "identity's shape"] and list(tracks["own shape"]) == ["unfiltered", "filtered"]
    before, after = tracks["own shape"]["unfiltered"], tracks["identity's shape"]["filtered"]
    assert after["jitter"]["mm_per_frame2"] < before["jitter"]["mm_per_frame2"] / 2
    assert before["hand_length"]["sd_mm"] > 1 and after["hand_length"]["range_mm"] == 0
    assert before["jitter"]["m_per_s2"] == pytest.approx(before["jitter"]["mm_per_frame2"] * 0.625)
    for line in lines:
        np.testing.assert_array_equal(line["hands"][0]["shape"], np.float32(TRUTHS[0].shape))
        assert line["hands"][0]["shape_source"] == HELD
    assert said["identity"]["used"] == "held" and said["identity"]["file"] == identity and "identity's shape" in result["text"]


def test_held_shape_in_a_picture(clip, identity, tmp_path, pictures):
    """Single pictures hold the shape, too: with the true shape and rotations the truth comes back, whatever was predicted."""
    path = save(tmp_path / "a.png", pictures[0])
    oracle = NoisyOracle(TRUTHS)
    oracle.truths = [TRUTHS[0]._replace(shape=TRUTHS[0].shape + 1)]
    box = save_json(tmp_path / "b.json", box_of(TRUTHS[0]))
    options = DemoOptions(**{**clip, "input": str(path), "identity": identity, "boxes": box})
    demo(oracle, HAND, options, tmp_path / "out", CropLike(), CPU)
    (hand,) = json.loads((tmp_path / "out" / "a.json").read_text())["hands"]
    np.testing.assert_allclose(list(hand["joints"].values()), TRUTHS[0].joints, atol=1e-6)
    np.testing.assert_allclose(hand["root"], TRUTHS[0].root, atol=1e-4)
    with pytest.raises(InputError, match="^demo.identity: this model predicts no rotations, so the identity's shape"):
        demo(NoisyOracle(TRUTHS, parameters=False), HAND, options, tmp_path / "no", CropLike(), CPU)


def test_told_methods_have_one_shape(clip, identity, tmp_path):
    """A method that is told the identity: reported as the identity's shape alone, and told the file's shape."""
    said, lines, _ = shown({**clip, "identity": identity}, tmp_path / "out", NoisyOracle(TRUTHS, 0.02, told=True))
    assert list(said["hands"]["right"]["tracks"]) == ["identity's shape"] and said["identity"]["used"] == "told to the network"
    assert said["hands"]["right"]["tracks"]["identity's shape"]["filtered"]["hand_length"]["range_mm"] == 0


def test_left_hand_is_the_mirrored_track(clip, tmp_path, pictures):
    """The mirrored video as a left hand: mirrored joints and roots, filter and all."""
    right = shown(clip, tmp_path / "right", NoisyOracle(TRUTHS, 0.03))[1]
    (tmp_path / "m").mkdir()
    mirrored = video_of(tmp_path / "m" / "clip.avi", [picture[:, ::-1] for picture in pictures])
    boxes = {str(t): {"box": [WIDTH - 1 - x - w, y, w, h], "side": "left"}
             for t, (x, y, w, h) in enumerate(map(box_of, TRUTHS))}
    K_left = K.copy()
    K_left[0, 2] = WIDTH - 1 - K[0, 2]
    options = {"input": str(mirrored), "boxes": save_json(tmp_path / "l.json", boxes),
               "K": save_json(tmp_path / "Kl.json", K_left.tolist())}
    left = shown(options, tmp_path / "left", NoisyOracle(TRUTHS, 0.03))[1]
    for a, b in zip(left, right):
        a, b = a["hands"][0], b["hands"][0]
        assert a["side"] == "left"
        np.testing.assert_allclose(a["root"], mirror_points(torch.tensor(b["root"])), atol=1e-5)
        np.testing.assert_allclose(list(a["joints"].values()), mirror_points(torch.tensor(list(b["joints"].values()))), atol=1e-5)


def test_a_mesh_without_parameters_is_smoothed_as_points(clip, tmp_path):
    """A method of vertices alone: filtered all the same, less jitter, finite bone lengths."""
    said, _, _ = shown(clip, tmp_path / "out", NoisyOracle(TRUTHS, 0.05, parameters=False))
    found = said["hands"]["right"]["tracks"]["own shape"]
    assert found["filtered"]["jitter"]["mm_per_frame2"] < found["unfiltered"]["jitter"]["mm_per_frame2"] / 2
    assert 100 < found["filtered"]["hand_length"]["mean_mm"] < 250


def test_keypoints_place_the_hand(clip, tmp_path, pictures):
    """2D joints of the method itself, or of a second network with another crop: the root is the truth though the box is wrong."""
    boxes = {str(t): [*np.add(box_of(truth)[:2], 9), 50, 70] for t, truth in enumerate(TRUTHS)}
    wrong = save_json(tmp_path / "wrong.json", boxes)
    options = {**clip, "boxes": wrong, "smooth": "none"}
    own = shown(options, tmp_path / "own", NoisyOracle(TRUTHS, uv=True))[1]
    second = Keypoints(NoisyOracle(TRUTHS, uv=True), CropLike(pixels=96, factor=2.2))
    two = shown(options, tmp_path / "two", NoisyOracle(TRUTHS), keypoints=second)[1]
    for lines in (own, two):
        for line, truth in zip(lines, TRUTHS):
            assert line["hands"][0]["root_source"] == BY_KEYPOINTS
            np.testing.assert_allclose(line["hands"][0]["root"], truth.root, atol=1e-4)
    with pytest.raises(InputError, match="demo.keypoints: this model predicts no 2D joints"):
        shown(options, tmp_path / "no", NoisyOracle(TRUTHS), keypoints=Keypoints(NoisyOracle(TRUTHS), CropLike()))


def test_distance_is_smoothed_harder_than_bearing():
    """A hand at rest stays to the last bits; noise along the ray is damped more than noise across it; a hand that moves across
    the ray is followed within 20 mm though its distance is noisy."""
    view = View(NoisyOracle(TRUTHS), HAND, CropLike(), CPU, "right")
    truth, generator = TRUTHS[0], np.random.default_rng(0)
    base = Seen("right", None, None, truth.verts.double(), truth.joints.double(), truth.root.double(), BY_BOX, *[None] * 5)

    def roots(offsets: np.ndarray) -> np.ndarray:
        smoother = Smoother(view, SmoothOptions())
        return np.stack([smoother(base._replace(root=base.root + torch.from_numpy(o)), 1 / 30).root.numpy() for o in offsets])

    np.testing.assert_allclose(roots(np.zeros((20, 3))), np.tile(base.root, (20, 1)), atol=1e-15)
    noise = generator.normal(size=(400, 3)) * [0.005, 0.005, 0.005]
    left = np.diff(roots(noise), n=2, axis=0).std(0) / np.diff(noise, n=2, axis=0).std(0)
    assert left[2] < 0.5 * left[0] and left.max() < 0.4
    across = np.arange(60)[:, None] * [0.3 / 30, 0, 0] + generator.normal(size=(60, 1)) * [0, 0, 0.01]
    found, true = roots(across), base.root.numpy() + across
    assert np.abs(found[:, 0] / found[:, 2] - true[:, 0] / true[:, 2])[20:].mean() * 0.5 < 0.02


def test_refined_to_keypoints(clip, identity, tmp_path):
    """Noisy rotations, true 2D joints and the true shape: fitted hands are nearer to the truth than predicted ones, in pose and
    place, and say so; without 2D joints one line refuses."""
    errors = []
    for refine in (False, True):
        options = {**clip, "identity": identity, "smooth": "none", "refine": refine}
        lines = shown(options, tmp_path / str(refine), NoisyOracle(TRUTHS, 0.08, uv=True))[1]
        hands = [line["hands"][0] for line in lines]
        assert {hand["pose_source"] for hand in hands} == {REFINED if refine else PREDICTED}
        joints = [np.array(list(hand["joints"].values())) + hand["root"] for hand in hands]
        errors.append(np.mean([np.linalg.norm(j - (t.joints + t.root).numpy(), axis=1).mean() for j, t in zip(joints, TRUTHS)]))
    assert errors[1] < errors[0] * 0.7
    with pytest.raises(InputError, match="demo.refine fits to 2D keypoints, and there are none"):
        shown({**clip, "refine": True}, tmp_path / "no", NoisyOracle(TRUTHS))


def test_video_that_ends_early(clip, tmp_path):
    """Half a video: what was read is shown and kept, and one line says how many frames are missing; exit through InputError."""
    cut_file(Path(clip["input"]), 0.5)
    expected = r"clip.avi: the video ends after \d of the 12 frames that it announces; what was read is kept"
    with pytest.raises(InputError, match=expected) as caught:
        shown(clip, tmp_path / "out", NoisyOracle(TRUTHS))
    said = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert "\n" not in str(caught.value) and 2 <= said["frames"]["read"] < 10 and said["frames"]["cut_short"]
    assert len(frames_of(tmp_path / "out" / "clip.mp4")) == said["frames"]["shown"] == said["frames"]["read"]


def test_frames_without_a_box_or_a_hand(clip, tmp_path, caplog):
    """A frame that the box file leaves out is named at the end and drawn without a hand; null is no hand and no fault; entries
    beyond the end are warned of. The others are as they were, and the filter bridges the gap."""
    boxes = {str(t): box_of(truth) for t, truth in enumerate(TRUTHS) if t != 4} | {"7": None, "99": [1, 2, 3, 4]}
    oracle = NoisyOracle([truth for t, truth in enumerate(TRUTHS) if t not in (4, 7)])
    options = {**clip, "boxes": save_json(tmp_path / "b.json", boxes), "smooth": "none"}
    expected = "1 frame could not be shown: clip.avi/000004: the box file has no entry '000004'; .*other 11"
    with pytest.raises(InputError, match=expected):
        shown(options, tmp_path / "out", oracle)
    said = json.loads((tmp_path / "out" / "clip.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / "clip.jsonl").read_text().splitlines()]
    assert (said["frames"]["failed"], said["frames"]["without_hand"], said["hands"]["right"]["frames"]) == (1, 1, 10)
    assert [len(line["hands"]) for line in lines] == [1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1] and "no entry" in lines[4]["fault"]
    assert len(frames_of(tmp_path / "out" / "clip.mp4")) == 12
    np.testing.assert_allclose(lines[11]["hands"][0]["root"], TRUTHS[11].root, atol=1e-4)
    assert said["hands"]["right"]["tracks"]["own shape"]["unfiltered"]["jitter"]["triples"] == 4
    assert "1 entries of the box file name no frame" in caplog.text and "first: 99" in caplog.text


def test_broken_pictures_in_a_track(clip, tmp_path, pictures):
    """A first frame that is no picture and a later one of another size: both named, both black or left as they are; the rest goes
    on and the video has every frame."""
    (tmp_path / "in").mkdir()
    for t, picture in enumerate(pictures[:5]):
        save(tmp_path / "in" / f"{t}.png", picture if t != 3 else picture[:100])
    (tmp_path / "in" / "0.png").write_bytes(b"")
    options = DemoOptions(input=str(tmp_path / "in"), track=True)
    expected = "2 frames could not be shown: .*0.png: expected a picture .*3.png: 320x100 pixels, but the track"
    with pytest.raises(InputError, match=expected):
        demo(NoisyOracle(TRUTHS), HAND, options, tmp_path / "out", CropLike(), CPU)
    drawn = frames_of(tmp_path / "out" / "in.mp4")
    assert len(drawn) == 5 and drawn[0].max() < 8 and drawn[3].max() < 8 and drawn[1].max() > 100


def test_bad_tracks(clip, tmp_path, pictures):
    """A video that is none, one cut before its index, one without a hand, two hands of one side, one picture as a track, no mesh:
    one line each, and nothing is left behind."""
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    cut_file(video_of(tmp_path / "cut.mp4", pictures[:4], code="mp4v"), 0.5)
    save(tmp_path / "one.png", pictures[0])
    (tmp_path / "empty").mkdir()
    pair = save_json(tmp_path / "pair.json", [[10, 10, 50, 50], [90, 90, 50, 50]])
    none = save_json(tmp_path / "none.json", {str(t): [] for t in range(12)})
    cases = [({"input": str(tmp_path / "junk.mp4")}, "junk.mp4: expected a video .* found 400 bytes that cannot be opened"),
             ({"input": str(tmp_path / "cut.mp4")}, "cut.mp4: expected a video"),
             ({"input": str(tmp_path / "gone.mp4")}, "demo.input: expected a picture, .* a video, found nothing"),
             ({"input": str(tmp_path / "empty"), "track": True}, "demo.input: no picture in the folder"),
             ({"input": str(tmp_path / "one.png"), "track": True}, "demo.track: .*one.png is one picture"),
             ({**clip, "boxes": none}, r"no frame with a hand that could be shown \(0 failed\); the box file says"),
             ({**clip, "boxes": pair}, "a track follows one hand per side"),
             ({**clip, "fov": 50}, "demo.K and demo.fov are both given")]
    for options, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            demo(NoisyOracle(TRUTHS), HAND, DemoOptions(**options), tmp_path / "out", CropLike(), CPU)
        assert "\n" not in str(caught.value) and not list((tmp_path / "out").glob("*")), message


def test_video_on_its_side(tmp_path, pictures):
    """A phone's mark that the video is turned by 90 degrees: the frames come upright."""
    path = video_of(tmp_path / "a.mp4", pictures[:3], code="mp4v")
    data = path.read_bytes()
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(plain, data.index(b"tkhd"))
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    path.write_bytes(data[:place] + turned + data[place + 36:])
    frames = list(Frames(path))
    assert [frame.picture.shape for frame in frames] == [(WIDTH, HEIGHT, 3)] * 3
    assert np.abs(frames[0].picture.astype(int) - np.rot90(pictures[0], -1)).mean() < 4


def test_video_out_is_whole_or_absent(tmp_path, pictures):
    """A block that breaks leaves neither the video nor a part of it; odd sides lose a row; frames before the first are black."""
    with pytest.raises(RuntimeError), video_out(tmp_path / "a.mp4", 25) as out:
        out.write(pictures[0])
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with video_out(tmp_path / "a.mp4", 25) as out:
        for picture in (None, pictures[0][:101, :77], None):
            out.write(picture)
    frames = frames_of(tmp_path / "a.mp4")
    assert [frame.shape for frame in frames] == [(100, 76, 3)] * 3 and frames[0].max() < 8
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FPS) == 25
