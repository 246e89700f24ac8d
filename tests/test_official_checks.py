"""utils/official_checks.py: each usual mistake is refused by name, and no honest prediction is, however bad."""
import re

import numpy as np
import pytest
from eval_cases import golden_hands
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plausible_cases import AXES, FREIHAND, HO3D, hands, ho3d, network

from utils.errors import InputError
from utils.joints import H21_FROM_T21
from utils.official_checks import check_joints, check_labels, check_part, check_verts
from utils.plausible_order import ORDERS, gather

TRUE, TRUE_VERTS = hands(120, seed=1)
PRED = network(TRUE, seed=2)
H21 = list(H21_FROM_T21)


def refusal(pred: np.ndarray, true: np.ndarray = TRUE, protocol=FREIHAND, **options) -> str:
    """The one line of the refusal."""
    with pytest.raises(InputError) as error:
        check_joints(pred, true, protocol, "pred.json", **options)
    line = str(error.value)
    assert line.startswith(f"pred.json: {protocol.title} expects joints in ") and "--unchecked" in line and "\n" not in line
    return line


@pytest.mark.parametrize("factor, words", [(1000, "millimetres.*divide them by 1000"), (100, "centimetres.*divide them by 100"),
                                           (0.001, "multiply them by 1000")])
@pytest.mark.parametrize("relative", [False, True])
def test_unit(factor, words, relative):
    """A network's answer in mm, cm or thousandths is named as such, absolute or wrist-relative."""
    pred = PRED - PRED[:, :1] if relative else PRED
    line = refusal(factor * pred)
    assert_words(line, words)
    assert ("wrist-relative" in line) == relative


def test_unit_of_a_file_in_millimetres():
    """Where millimetres are asked, a file in metres reads as hands 1000 times too small."""
    assert_words(refusal(PRED / 1000, unit="mm"), "joints in millimetres", "in metres.*multiply them by 1000")


def test_opengl_axes_where_opencv_is_asked():
    """y and z negated: the hands are behind FreiHAND's camera."""
    assert_words(refusal(PRED * AXES), "behind the camera", "OpenGL's", r"multiply all points by \(1, -1, -1\)")


def test_opencv_axes_and_order_where_ho3d_is_asked():
    """T21 in OpenCV axes for HO3D: both mistakes are named in one line, and each alone."""
    true = ho3d(TRUE)
    assert_words(refusal(PRED, true, HO3D), "OpenCV's", "reorder each hand by", str(H21).replace(" ", "")[1:-1])
    assert "reorder" not in refusal(PRED[:, H21], true, HO3D)
    assert "behind" not in refusal(PRED * AXES, true, HO3D)
    check_joints(ho3d(PRED), true, HO3D, "pred.json")


def test_only_z_negated():
    """Another wrong sign of the depth is told from OpenGL's axes."""
    assert_words(refusal(PRED * [1, 1, -1]), r"multiply all points by \(1, 1, -1\)")


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, -1, -1)])
def test_axes_about_the_wrist(signs):
    """Wrists right, hands about them on other axes (true root added in the wrong frame): said, with the signs."""
    pred = (PRED - PRED[:, :1]) * signs + PRED[:, :1]
    assert_words(refusal(pred), "turned half round", "relative to the wrist", ", ".join(map(str, signs)))


def test_other_axes_in_front_of_the_camera():
    """x left and y up with z forward, as some renderers have it."""
    assert_words(refusal(PRED * [-1, -1, 1]), "turned half round", r"multiply the points by \(-1, -1, 1\)")


@pytest.mark.parametrize("order", [name for name in ORDERS if name != "T21"])
def test_joint_order(order):
    """Every known order other than T21 is named, and the advice puts the joints right."""
    line = refusal(PRED[:, gather(order, "T21")])
    assert order.split("(")[0] in line
    indices = [int(i) for i in line.split("joints[[")[1].split("]]")[0].split(",")]
    np.testing.assert_array_equal(PRED[:, gather(order, "T21")][:, indices], PRED)


def test_joint_order_by_bones_alone():
    """Hands that point elsewhere than the true ones are still seen to be in H21 by the lengths of their bones."""
    other = hands(120, seed=9)[0]
    assert_words(refusal(other[:, H21]), "by the lengths of the bones", "H21")


@pytest.mark.parametrize("root", [0, 9])
def test_wrist_relative(root):
    """Hands about their wrist, or about the middle finger's base."""
    pred = PRED - PRED[:, root : root + 1]
    assert_words(refusal(pred), "wrist-relative", "100%", "add the root's position in the camera")
    check_joints(pred, TRUE, FREIHAND, "pred.json", absolute=False)


def test_wrist_relative_from_the_truth_s_wrist():
    """The true wrist subtracted from an absolute answer: no joint is at the origin, yet the hand is at the camera."""
    pred = network(TRUE, seed=3, depth=0.005) - TRUE[:, :1]
    assert_words(refusal(pred), "wrist-relative")


def test_wrist_relative_on_other_axes():
    """Two mistakes in one file are both named."""
    assert_words(refusal((PRED - PRED[:, :1]) * AXES), "wrist-relative", "turned half round")


@pytest.mark.parametrize("about", ["camera", "wrist"])
def test_mirrored_hands(about):
    """Left hands for right ones, about the camera or the wrist: said, not refused, since officially a mirror image fits."""
    pred = PRED * [-1, 1, 1] if about == "camera" else (PRED - PRED[:, :1]) * [-1, 1, 1] + PRED[:, :1]
    (said,) = check_joints(pred, TRUE, FREIHAND, "pred.json")
    assert_words(said, "mirror images", "left hands", r"\(-1, 1, 1\)")
    assert check_joints(PRED, TRUE, FREIHAND, "pred.json") == []


ORDER_OF_SAMPLES = {
    "backwards": lambda n: np.arange(n)[::-1],
    "1 place.s. too late": lambda n: np.roll(np.arange(n), 1),
    "1 place.s. too early": lambda n: np.roll(np.arange(n), -1),
    "sorted by their number as text": lambda n: np.array(sorted(range(n), key=str)),
    "another order": lambda n: np.random.default_rng(0).permutation(n),
}


@pytest.mark.parametrize("name", ORDER_OF_SAMPLES)
def test_sample_order(name):
    """Samples backwards, shifted, sorted as text or shuffled: found by the hands' poses, and the place is named."""
    line = refusal(PRED[ORDER_OF_SAMPLES[name](len(PRED))])
    assert_words(line, name, "official evaluation list")


@pytest.mark.parametrize("scenario", ["main", "mirror", "zeros"])
@pytest.mark.parametrize("protocol, axes", [(FREIHAND, 1), (HO3D, AXES)])
def test_golden_scenarios_pass(scenario, protocol, axes):
    """The official goldens are random clouds: the distorted, the mirrored and the all-zero prediction are all scored."""
    golden = {key: value * axes for key, value in golden_hands(scenario).items()}
    check_joints(golden["pred_xyz"], golden["true_xyz"], protocol, "pred.json")
    check_verts(golden["pred_verts"], golden["pred_xyz"], golden["true_verts"], protocol, "pred.json")


def test_zeros_of_real_hands_pass():
    """The published check of FreiHAND: zeros everywhere, joints and mesh."""
    check_joints(0 * TRUE, TRUE, FREIHAND, "pred.json")
    check_verts(0 * TRUE_VERTS, 0 * TRUE, TRUE_VERTS, FREIHAND, "pred.json")


POOR = {
    "truth": lambda true, draw, amount: true,
    "noise": lambda true, draw, amount: true + 0.1 * amount * draw.normal(size=true.shape),
    "mean": lambda true, draw, amount: np.repeat(true.mean(0, keepdims=True), len(true), 0),
    "mean about the true wrist": lambda true, draw, amount: (true - true[:, :1]).mean(0) + true[:, :1],
    "constant": lambda true, draw, amount: np.repeat(true[:1], len(true), 0),
    "constant and noise": lambda true, draw, amount: true[:1] + 0.05 * amount * draw.normal(size=true.shape),
    "depth": lambda true, draw, amount: true * (1 + draw.uniform(-0.3, 0.3, (len(true), 1, 1))),
    "one depth": lambda true, draw, amount: true * (0.7 if amount < 0.5 else 1.3),
    "half as large": lambda true, draw, amount: (true - true[:, :1]) * (0.5 + amount) + true[:, :1],
    "turned": lambda true, draw, amount: network(true, int(1e6 * amount), turn=3 * amount, noise=0.01, depth=0.1),
    "other hands": lambda true, draw, amount: hands(len(true), int(1e6 * amount) + 7)[0],
    "other hands at the true wrist": lambda true, draw, amount: _moved(hands(len(true), int(1e6 * amount) + 8)[0], true),
    "a cloud": lambda true, draw, amount: draw.uniform(-0.1, 0.1, true.shape) + true.mean(1, keepdims=True),
    "points": lambda true, draw, amount: true.mean(1, keepdims=True) + 1e-3 * amount * draw.normal(size=true.shape),
    "nearly zero": lambda true, draw, amount: 0.05 * amount * draw.normal(size=true.shape),
    "flat": lambda true, draw, amount: np.concatenate([true[..., :2], true[:, :1, 2:].repeat(21, 1)], 2),
    "shrunk towards the mean": lambda true, draw, amount: amount * true + (1 - amount) * true.mean(0),
}


def _moved(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    return pred - pred[:, :1] + true[:, :1]


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(POOR)), count=st.integers(1, 150), seed=st.integers(0, 2**31), amount=st.floats(0, 1),
       turn=st.sampled_from([0.2, 1.2]), bend=st.floats(0, 1), cloud=st.booleans(), ho3d_asked=st.booleans())
@example(kind="turned", count=1, seed=28929, amount=1 - 2**-53, turn=0.2, bend=0.0, cloud=True, ho3d_asked=True)  # was refused
def test_honest_predictions_pass(kind, count, seed, amount, turn, bend, cloud, ho3d_asked):
    """No poor prediction is refused: noise, means, constants, wrong depths, other poses, clouds; of hands and of clouds."""
    draw = np.random.default_rng(seed)
    true = draw.uniform(-0.1, 0.1, (count, 21, 3)) + [0, 0, 0.6] if cloud else hands(count, seed, turn, bend)[0]
    pred = POOR[kind](true, draw, amount)
    if ho3d_asked:
        check_joints(ho3d(pred), ho3d(true), HO3D, "pred.json")
    else:
        check_joints(pred, true, FREIHAND, "pred.json")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), step=st.floats(0.001, 0.02), error=st.floats(0.002, 0.05), count=st.integers(20, 200))
def test_smooth_recordings_pass(seed, step, error, count):
    """A video's hands, each near its neighbours' poses, with honest errors: neighbours are not taken for another order."""
    draw = np.random.default_rng(seed)
    path = np.cumsum(step * draw.normal(size=(count, 1, 3)), 0)
    ends = hands(2, seed)[0]
    share = np.linspace(0, 1, count)[:, None, None]
    true = (1 - share) * ends[0] + share * ends[1] + 0.2 * path
    check_joints(true + error * draw.normal(size=true.shape), true, FREIHAND, "pred.json")


def verts_refusal(verts: np.ndarray) -> str:
    """The one line of a refused mesh whose joints are right."""
    check_joints(PRED, TRUE, FREIHAND, "pred.json")
    with pytest.raises(InputError) as error:
        check_verts(verts, PRED, TRUE_VERTS, FREIHAND, "pred.json")
    line = str(error.value)
    assert line.startswith("pred.json: FreiHAND expects vertices in metres") and "the joints of this file are right" in line
    return line


def test_mesh_in_another_unit_frame_or_place():
    """Joints right, vertices in mm, on OpenGL axes, about the wrist, or about another root: each is named."""
    verts = TRUE_VERTS + (PRED[:, :1] - TRUE[:, :1])
    check_verts(verts, PRED, TRUE_VERTS, FREIHAND, "pred.json")
    assert_words(verts_refusal(1000 * verts), "millimetres", "divide them by 1000")
    assert_words(verts_refusal(verts * AXES), "behind the camera", "OpenGL's")
    assert_words(verts_refusal(verts - PRED[:, :1]), "away from the joints", "root-relative")
    assert_words(verts_refusal(verts - PRED[:, 9:10]), "away from the joints")
    assert_words(verts_refusal((verts - PRED[:, :1]) * AXES + PRED[:, :1]), "turned half round")
    assert_words(*check_verts(verts * [-1, 1, 1], PRED, TRUE_VERTS, FREIHAND, "pred.json"), "mirror images")


def test_normalised_or_pixels():
    """Divided by the bone's length (FreiHAND's scale), or pixels with a depth: too large by no unit, and no unit is blamed."""
    scale = np.linalg.norm(TRUE[:, 9] - TRUE[:, 10], axis=1)[:, None, None]
    pixels = np.concatenate([PRED[..., :2] / PRED[..., 2:] * 450 + 112, PRED[..., 2:]], 2)
    for pred in (PRED / scale, pixels):
        assert_words(refusal(pred), "times too large", "evaluation_scale.json")


def test_a_part_that_is_not_the_beginning():
    """Samples 100 on of a whole list: the place is named. The beginning passes, so do a poor part and a constant one."""
    some = slice(20, 40)
    with pytest.raises(InputError, match="found those from 20 on, counted from 0"):
        check_part(PRED[some], TRUE, FREIHAND, "pred.json")
    constant = np.repeat(TRUE[:1], 20, 0)
    for pred in (PRED[:20], constant, TRUE[:20] + np.random.default_rng(0).normal(0, 0.05, (20, 21, 3)), 0 * PRED[:20]):
        check_part(pred, TRUE, FREIHAND, "pred.json")


def test_labels_of_another_protocol():
    """HO3D's labels given for FreiHAND's and the reverse; those of random clouds pass, as the goldens are."""
    h21 = TRUE[:, list(H21_FROM_T21)]
    with pytest.raises(InputError, match="hands behind the camera: are they another dataset's"):
        check_labels(h21 * AXES, FREIHAND, "truth.json")
    with pytest.raises(InputError, match="bones of the order T21"):
        check_labels(TRUE * AXES, HO3D, "truth.json")
    check_labels(TRUE, FREIHAND, "truth.json")
    check_labels(h21 * AXES, HO3D, "truth.json")
    check_labels(golden_hands("main")["true_xyz"], FREIHAND, "truth.json")


def test_a_mesh_of_one_point_is_said():
    """Joints with a mesh of zeros, as methods without one submit: scored, and said."""
    (said,) = check_verts(0 * TRUE_VERTS, PRED, TRUE_VERTS, FREIHAND, "pred.json")
    assert_words(said, "all one point")


@pytest.mark.parametrize("kind", ["noise", "mean", "constant", "depth", "a cloud", "points", "nearly zero", "half as large"])
def test_honest_meshes_pass(kind):
    """A poor mesh beside good joints, or both poor, is scored."""
    draw = np.random.default_rng(0)
    verts = POOR[kind](TRUE_VERTS, draw, 0.6)
    check_verts(verts, PRED, TRUE_VERTS, FREIHAND, "pred.json")
    check_verts(verts, POOR[kind](TRUE, draw, 0.6), TRUE_VERTS, FREIHAND, "pred.json")


def assert_words(line: str, *words: str) -> None:
    for word in words:
        assert re.search(word, line), f"{word!r} is not in {line!r}"


def test_labels_without_extent_bring_no_warning(recwarn):
    """True hands that are points (labels of zeros) are no hands: nothing is judged, nothing divided by their size."""
    true, _ = hands(20, 0)
    assert check_joints(true, 0 * true, FREIHAND, "pred.json") == [] and not recwarn.list
