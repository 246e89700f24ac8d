"""src/ruler.py: what a measure is, the shape's posterior given measured lengths, what is refused."""
from pathlib import Path

import numpy as np
import pytest
import torch

from src.calibrate import PRIOR, CalibrateOptions, calibrate
from src.calibration_estimate import Estimate
from src.identity import read_identity
from src.ruler import MEASURES, Measured, Ruler, condition, given, parse_measured
from utils.errors import InputError
from utils.hand import HandModel

ROOT = Path(__file__).resolve().parent.parent
HAND = HandModel.load(ROOT / "template/free_hand_right.npz")
NAMES = list(MEASURES)


@pytest.fixture(scope="module")
def ruler() -> Ruler:
    return Ruler(HAND)


def people(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 10))


def lengths(ruler: Ruler, shape: np.ndarray, names: list[str] = NAMES) -> np.ndarray:
    return ruler.of(torch.from_numpy(shape), names).numpy()


def test_measures_on_the_mesh_itself(ruler: Ruler):
    """Lengths and breadths against a plain search over the flat mesh: the furthest skin, and thin slabs of vertices."""
    for shape in people(5):
        verts, joints = _flat(ruler, shape)
        found = dict(zip(NAMES, lengths(ruler, shape)))
        assert found["wrist_to_middle_tip"] == pytest.approx(np.linalg.norm(joints[12] - joints[0]), abs=0.6)
        for base, finger in ((2, "thumb_length"), (5, "index_length"), (9, "middle_finger_length"), (17, "little_length")):
            tip = {"thumb_length": 4, "index_length": 8, "middle_finger_length": 12, "little_length": 20}[finger]
            assert found[finger] == pytest.approx(np.linalg.norm(joints[tip] - joints[base]), abs=0.6)
        across = (joints[5] - joints[17]) / np.linalg.norm(joints[5] - joints[17])
        along = joints[9] - joints[0]
        along -= along @ across * across
        near = np.abs((verts - joints[5]) @ along / np.linalg.norm(along)) < 6
        thumb = np.linalg.norm(verts[:, None] - joints[None, 1:5], axis=-1).min(1) < 18
        slab = (verts[near & ~thumb] - joints[5]) @ across
        assert found["palm_width"] == pytest.approx(slab.max() - slab.min(), abs=3)
        assert found["palm_width"] > np.linalg.norm(joints[5] - joints[17]) + 8  # skin on both sides of the joints


def _flat(ruler: Ruler, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shaped = ruler.hand.shaped(torch.from_numpy(shape))
    posed = shaped.posed(torch.eye(3, dtype=torch.float64).expand(16, 3, 3))
    return 1000 * posed.verts.numpy(), 1000 * ruler.hand.joints(posed).numpy()


def test_the_left_hand_measures_the_same(ruler: Ruler):
    """A left hand model, the right one's mirror image, has the same lengths."""
    left = Ruler(HandModel.load(ROOT / "template/free_hand_left.npz"))
    for shape in people(3):
        assert np.allclose(lengths(left, shape), lengths(ruler, shape), atol=1e-6)


def test_exact_measurements_are_met(ruler: Ruler):
    """With tiny errors the posterior's hand has the measured lengths, though they are not linear in the shape."""
    for shape in people(4, 1):
        measured = [Measured(name, mm, 0.01) for name, mm in zip(NAMES[:3], lengths(ruler, shape, NAMES[:3]))]
        posterior = given(HAND, measured)
        assert np.allclose(lengths(ruler, posterior.mean, NAMES[:3]), [m.mm for m in measured], atol=0.05)
        assert np.allclose(posterior.fit_mm, [m.mm for m in measured], atol=0.05)


def test_the_mode_is_the_minimum(ruler: Ruler):
    """The posterior's mean minimises the sum of squares, and its precision is half of that sum's curvature (one measure)."""
    measured = [Measured("palm_width", 95.0, 2.0)]
    posterior = given(HAND, measured)

    def cost(shape: np.ndarray) -> float:
        return float(shape @ shape + ((lengths(ruler, shape, ["palm_width"])[0] - 95.0) / 2.0)**2)

    rng = np.random.default_rng(2)
    least = cost(posterior.mean)
    precision = np.linalg.inv(posterior.covariance)
    for _ in range(20):
        step = rng.normal(size=10)
        step *= 0.05 / np.linalg.norm(step)
        rise = (cost(posterior.mean + step) + cost(posterior.mean - step)) / 2 - least
        assert rise > 0 and rise == pytest.approx(step @ precision @ step, rel=0.1)


def test_people_are_recovered_and_intervals_cover(ruler: Ruler):
    """60 people measured with 2 mm of error: hand length to 2 mm, and the 68 % interval of a coefficient holds 62-74 %."""
    rng = np.random.default_rng(3)
    names = ["wrist_to_middle_tip", "palm_width", "little_length"]
    inside, errors, spread = [], [], []
    for shape in people(60, 4):
        measured = [Measured(name, mm + rng.normal(0, 2), 2.0) for name, mm in zip(names, lengths(ruler, shape, names))]
        posterior = given(HAND, measured)
        inside.append(np.abs(posterior.mean - shape) < np.sqrt(np.diag(posterior.covariance)))
        errors.append(lengths(ruler, posterior.mean, names)[0] - lengths(ruler, shape, names)[0])
        spread.append(lengths(ruler, shape, names)[0])
    assert 0.62 < np.mean(inside) < 0.74
    assert np.abs(errors).mean() < 2 < np.std(spread) / 5


def test_a_given_prior_is_kept(ruler: Ruler):
    """Conditioning on one measure after the other is conditioning on both; a measure of no weight changes nothing."""
    both = [Measured("wrist_to_middle_tip", 195.0, 2.0), Measured("palm_width", 84.0, 2.0)]
    first = given(HAND, both[:1])
    second = given(HAND, both[1:], first.mean, first.covariance)
    together = given(HAND, both)
    assert np.allclose(second.mean, together.mean, atol=0.02) and np.allclose(second.covariance, together.covariance, atol=0.01)
    nothing = given(HAND, [Measured("palm_width", 84.0, 1e6)], first.mean, first.covariance)
    assert np.allclose(nothing.mean, first.mean, atol=1e-6)


def test_words():
    """Units, spaces and stated errors."""
    found = parse_measured(" palm_width: 8.4cm+-1mm, wrist_to_middle_tip:0.19m ± 0.3 cm,little_length:57mm", 2.5)
    expected = [("palm_width", 84, 1), ("wrist_to_middle_tip", 190, 3), ("little_length", 57, 2.5)]
    assert [(m.name, pytest.approx(m.mm), pytest.approx(m.sd_mm)) for m in found] == expected


@pytest.mark.parametrize(("text", "line"), [
    ("palm_with:84mm", "'palm_with': there is no such measure; did you mean palm_width?"),
    ("foot:84mm", "'foot': there is no such measure; there are wrist_to_middle_tip, palm_width"),
    ("palm_width", "palm_width: expected a length, e.g. palm_width:84mm, found none"),
    ("palm_width:84", "palm_width:84: expected a unit, one of mm, cm, m, found none"),
    ("palm_width:84inch", "palm_width:84inch: expected a unit, one of mm, cm, m, found inch"),
    ("palm_width:wide", "palm_width: expected a length such as 84mm, found 'wide'"),
    ("palm_width:8.4.1mm", "palm_width: expected a length such as 84mm, found '8.4.1mm'"),
    ("palm_width:-84mm", "palm_width:-84mm: expected a length above 0"),
    ("palm_width:84mm+-0mm", "palm_width:0mm: expected a length above 0"),
    ("palm_width:84mm+-1mm+-2mm", "palm_width: expected one error, e.g. palm_width:84mm\\+-2mm, found 2"),
    ("palm_width:84mm,palm_width:85mm", "palm_width is given twice"),
    (" , ", "expected e.g. wrist_to_middle_tip:190mm,palm_width:84mm, found nothing"),
])
def test_refused_words(text: str, line: str):
    """Each fault of the option's text in one line."""
    with pytest.raises(InputError, match=f"^calibrate.measured: {line}") as caught:
        parse_measured(text, 2.0)
    assert "\n" not in str(caught.value)


def test_out_of_reach():
    """A length no hand of the model has is refused with the range it has (centimetres taken for millimetres)."""
    with pytest.raises(InputError, match=r"palm_width:840mm is out of reach of the hand model free_hand_right, whose hands have "
                                         r"\d+ to \d+ mm; palm_width is measured so: across"):
        given(HAND, [Measured("palm_width", 840.0, 2.0)])


def test_measures_that_do_not_fit_together():
    """A long hand with a child's palm is warned of; a usual pair is not."""
    assert not condition(PRIOR, "wrist_to_middle_tip:190mm,palm_width:87mm", HAND).warnings
    assert "badly; measure again: wrist_to_middle_tip 205 mm (nearest: " in condition(
        PRIOR, "wrist_to_middle_tip:205mm,palm_width:65mm", HAND).warnings[0]


def test_together_with_images():
    """An estimate from images keeps its frames and number; its covariance shrinks, and never below what the ruler leaves."""
    wide = np.diag([0.5, *[0.2] * 9])
    images = Estimate(np.full(10, 0.3), 20, "camera cue", covariance=0.1 * wide, frames=("a",),
                      covariance_at=lambda factor: (0.1 + 0.9 / factor) * wide)
    both = condition(images, "wrist_to_middle_tip:200mm+-1mm", HAND)
    assert both.frames == ("a",) and both.n == 20 and both.cue == "ruler; camera cue"
    assert (np.diag(both.covariance) <= np.diag(images.covariance) + 1e-12).all()
    assert both.covariance[0, 0] < 0.25 * images.covariance[0, 0]
    alone = given(HAND, [Measured("wrist_to_middle_tip", 200.0, 1.0)], both.shape, wide).covariance
    assert np.allclose(both.covariance_at(1.0), alone, atol=2e-3)
    assert np.allclose(both.covariance_at(np.inf), both.covariance, atol=2e-3)


def test_calibrate_with_a_ruler_alone(tmp_path: Path):
    """The command without any picture: an identity of no images that names the ruler, its lengths and their fit."""
    options = CalibrateOptions(measured="wrist_to_middle_tip:190mm", measured_sd_mm=3.0, subject=7)
    calibrate(options, tmp_path, hand=HAND)
    identity = read_identity(tmp_path / "7.json", HAND)
    assert (identity.subject, identity.n, identity.method, identity.cue) == (7, 0, "ruler", "ruler") and identity.frames is None
    length = identity.settings["lengths"][0]
    assert length["sd_mm"] == 3 and length["fit_mm"] == pytest.approx(190, abs=0.6)
    assert np.linalg.eigvalsh(identity.covariance).min() > 0 and identity.mesh_sd_mm > 0
