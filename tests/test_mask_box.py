"""datasets/mask_box.py, FreiHAND cut around masks: boxes against OpenCV's, CMR's jitter, one geometry, the evaluation's crop."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from freihand_cases import SIZE, free_hand, read_list, write_tree
from scipy import stats
from torch.utils.data import default_collate

from datasets import mixed
from datasets.augment import SPREAD, AugmentOptions, CropOptions, crop_square, cut_normal, placement, turned_box
from datasets.freihand import Options, open_reader, prepare
from datasets.mask_box import EVALUATION_SIDE, HULL, box_of_hull, hull_of, square_hull
from utils.batch import Batch
from utils.camera import invert_affine, project, transform_uv
from utils.errors import InputError

HANDS = {"right": free_hand()}
SAMPLES, EVALUATION = 6, 3
CROP = CropOptions(pixels=96, factor=1.3)
CMR = AugmentOptions(rotate=90, scale=0.2 / 1.3, shift=1.0, jitter="inside")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Six training samples in two versions and three of the evaluation, prepared around their masks."""
    root = tmp_path_factory.mktemp("freihand")
    write_tree(root / "tree", HANDS["right"], SAMPLES, EVALUATION, versions=2)
    chosen = Options(root=str(root / "tree"), prepared=str(root / "prepared"), box="mask", workers=1)
    assert prepare(chosen, HANDS).counts["kept"] == 2 * SAMPLES + EVALUATION
    return chosen


def opened(options: Options, split: str = "training", crop: CropOptions = CROP, augment: AugmentOptions | None = None, **changes):
    return open_reader(options.model_copy(update=changes), crop, augment or AugmentOptions(), split=split, seed=3, hands=HANDS,
                       train=augment is not None)


def whole(reader, epoch: int = 0) -> Batch:
    return reader.batch(default_collate([reader[(epoch, i)] for i in range(len(reader))]))


def read_mask(options: Options, sample: int) -> np.ndarray:
    """0 or 255, as the original takes a mask's file."""
    path = Path(options.root) / "training" / "mask" / f"{sample:08d}.jpg"
    return np.where(cv2.imread(str(path))[..., 0] > 240, 255, 0).astype(np.uint8)


def upright(mask: np.ndarray) -> tuple[int, int, int, int]:
    """OpenCV's x, y, w, h of the largest outer contour."""
    pieces, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.boundingRect(max(pieces, key=cv2.contourArea))


def test_box_of_a_mask(options: Options):
    """The stored box of every training picture is OpenCV's of the file's largest piece, centred on its pixels."""
    reader = opened(options)
    for i in range(len(reader)):
        x, y, w, h = upright(read_mask(options, i % SAMPLES))
        np.testing.assert_allclose(reader.read(i)["box"], (x + (w - 1) / 2, y + (h - 1) / 2, max(w, h)))


def test_largest_piece_alone():
    """Dust beside the hand, and a hole in it, change nothing; no mask is no hull, and few or many corners are HULL points."""
    mask = np.zeros((80, 90), np.uint8)
    cv2.circle(mask, (40, 30), 20, 255, -1)
    hull = hull_of(mask)
    assert hull.shape == (HULL, 2) and hull.dtype == np.int16
    mask[70:74, 80:84] = 255
    mask[30, 40] = 0
    assert np.array_equal(hull_of(mask), hull) and box_of_hull(hull).tolist() == [40, 30, 41]
    assert hull_of(np.zeros((9, 9), np.uint8)) is None
    big = cv2.circle(np.zeros((700, 700), np.uint8), (350, 340), 330, 255, -1)  # more corners than are stored
    assert len(np.unique(hull_of(big), axis=0)) <= HULL
    for angle in np.arange(0, 90, 7):
        _, size = turned_box(torch.from_numpy(hull_of(big))[None].double(), torch.tensor([np.radians(angle)]))
        assert (size - 661).abs().max() < 1.5
    assert box_of_hull(square_hull(111.5, 100)).tolist() == [111.5, 111.5, 100]


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_turned_box_against_opencv(options: Options, sample: int):
    """Box of the turned hull, all angles at once, against OpenCV's boxes of masks that OpenCV turned."""
    mask = read_mask(options, sample)
    canvas = cv2.copyMakeBorder(mask, SIZE, SIZE, SIZE, SIZE, cv2.BORDER_CONSTANT, value=0)  # room to turn
    angles = np.arange(-90, 90, 7.5)
    hull = torch.from_numpy(hull_of(mask)).double().expand(len(angles), -1, -1)
    centre, size = turned_box(hull, torch.from_numpy(np.radians(angles)))
    for i, angle in enumerate(angles):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        middle = (3 * SIZE - 1) / 2
        turn = np.array([[c, -s, middle - c * middle + s * middle], [s, c, middle - s * middle - c * middle]])
        x, y, w, h = upright(np.where(cv2.warpAffine(canvas, turn, canvas.shape[::-1]) > 127, 255, 0).astype(np.uint8))
        np.testing.assert_allclose(size[i], (w, h), atol=1.5)  # OpenCV's ends are whole pixels
        wanted = turn[:, :2] @ (centre[i].numpy() + SIZE) + turn[:, 2]
        np.testing.assert_allclose(wanted, (x + (w - 1) / 2, y + (h - 1) / 2), atol=1)


def test_cut_normal_against_redrawing():
    """The inverse distribution's numbers are those of normal draws that are redrawn until within 1 (Kolmogorov-Smirnov)."""
    draw = np.random.default_rng(0)
    redrawn = draw.normal(0, SPREAD, 400_000)
    ours = cut_normal(torch.from_numpy(draw.uniform(-1, 1, 60_000))).numpy()
    wanted = stats.truncnorm(-1 / SPREAD, 1 / SPREAD, scale=SPREAD).cdf
    assert np.abs(ours).max() <= 1 and stats.kstest(ours, wanted).pvalue > 0.01
    assert stats.ks_2samp(ours, redrawn[np.abs(redrawn) <= 1]).pvalue > 0.01
    ends = cut_normal(torch.tensor([-1.0, 0.0, 1 - 2**-24], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([-1.0, 0, 1], dtype=torch.float64), atol=1e-6, rtol=0)


def test_jitter_inside_is_the_original_s():
    """Size and corner of the crop are the spec's formulas of a, sx, sy, upright; turned, the box stays in the crop."""
    draw = np.random.default_rng(1)
    hull = torch.from_numpy(draw.integers(40, 180, (200, HULL, 2))).double()
    hull[:, :, 1] = hull[:, :, 1] * 0.5 + 30
    random = torch.from_numpy(draw.random((200, 20), np.float32))
    for rotate in (0.0, 90.0):
        still = CMR.model_copy(update={"rotate": rotate})
        place = placement(random, still)
        centre, side = crop_square(torch.zeros(200, 3, dtype=torch.float64), hull, 1.3, place, still)
        middle, size = turned_box(hull, place.angle)
        if not rotate:
            a, s = (place.scale - 1) / (0.2 / 1.3), place.shift
            half = size.amax(1) / 2 * (1.3 + 0.2 * a)
            torch.testing.assert_close(side, 2 * half)
            torch.testing.assert_close(centre - middle, s * (half[:, None] - size / 2))
        off = centre - middle
        cos, sin = torch.cos(place.angle), torch.sin(place.angle)
        along = torch.stack((cos * off[:, 0] - sin * off[:, 1], sin * off[:, 0] + cos * off[:, 1]), -1)
        assert (along.abs() + size / 2 <= side[:, None] / 2 + 1e-9).all() and (along.abs() > 0.1 * side[:, None]).any()


@pytest.mark.parametrize("pixels", [64, 128, 224])
def test_one_geometry_with_masks(options: Options, pixels: int):
    """Turned, jittered: K times joints is joints_uv, the hand lies in the crop, its mask is where OpenCV's map of the file is."""
    reader = opened(options, crop=CropOptions(pixels=pixels, factor=1.3), augment=CMR)
    for epoch in range(3):
        batch = whole(reader, epoch)
        assert (project(batch.joints, batch.K) - batch.joints_uv).norm(dim=-1).max() < 0.01
        uv = project(batch.verts, batch.K)
        assert ((uv > -0.5 - pixels / 100) & (uv < pixels - 0.5 + pixels / 100)).all()
        posed = HANDS["right"](batch.rotations, batch.shape)
        relative = posed.verts - HANDS["right"].regress(posed.verts)[:, :1]
        assert (relative + batch.root[:, None] - batch.verts).norm(dim=-1).max() < 1e-5
        assert batch.has_mask.all() and batch.mask.shape == (2 * SAMPLES, pixels, pixels)
        for i in range(len(batch)):
            inside = batch.mask[i].nonzero()
            assert inside.min() >= 0 and inside.max() < pixels
            file = cv2.GaussianBlur(read_mask(options, i % SAMPLES), (0, 0), max(0.1, 0.3 * SIZE / pixels))
            warped = cv2.warpAffine(file, batch.crop_from_image[i, :2].double().numpy(), (pixels, pixels))
            other = (warped > 127) != (batch.mask[i].numpy() > 0)
            assert other.mean() < 0.6 / pixels  # a fraction of a pixel along the outline
            rows = uv[i].round().long().clamp(0, pixels - 1)
            grown = torch.nn.functional.max_pool2d(batch.mask[i][None], 3, 1, 1)[0]
            assert (grown[rows[:, 1], rows[:, 0]] == 1).float().mean() > 0.97


def test_evaluation_crop(options: Options):
    """130 pixels about (111.5, 111.5), whatever the hand: the original's K (c = 112.36 of c = 112), pixels one geometry."""
    reader = opened(options, "evaluation", CropOptions(pixels=224, factor=1.3))
    batch, K = whole(reader), read_list(Path(options.root) / "evaluation_K.json")
    scale = 224 / 130
    np.testing.assert_allclose(batch.K[:, 0, 0], K[:, 0, 0] * scale, rtol=1e-6)
    np.testing.assert_allclose(batch.K[:, :2, 2], scale * (K[:, :2, 2] - 47 + 0.5) - 0.5, atol=1e-4)
    assert abs(float(batch.K[0, 0, 2]) - 112.36) < 0.01 and batch.mask is None
    corners = transform_uv(invert_affine(batch.crop_from_image.double()), torch.tensor([[-0.5, -0.5], [223.5, 223.5]]).double())
    np.testing.assert_allclose(corners, np.broadcast_to([[46.5, 46.5], [176.5, 176.5]], corners.shape), atol=1e-4)
    assert (project(batch.joints, batch.K) - batch.joints_uv).norm(dim=-1).max() < 0.01
    assert reader.protocol()["crop"] == "130 px in the picture's middle, 224 px" and EVALUATION_SIDE == 100
    assert opened(options).protocol()["crop"] == "1.3 x box of the mask, 96 px"


def test_evaluation_crop_of_another_side(options: Options):
    """dataset.evaluation_side is read, not prepared: the same folder's middle 1.3 x 130 pixels, in one geometry."""
    reader = opened(options.model_copy(update={"evaluation_side": 130.0}), "evaluation", CropOptions(pixels=224, factor=1.3))
    batch = whole(reader)
    corners = transform_uv(invert_affine(batch.crop_from_image.double()), torch.tensor([[-0.5, -0.5], [223.5, 223.5]]).double())
    np.testing.assert_allclose(corners, np.broadcast_to([[27, 27], [196, 196]], corners.shape), atol=1e-4)
    assert (project(batch.joints, batch.K) - batch.joints_uv).norm(dim=-1).max() < 0.01
    assert reader.protocol()["crop"] == "169 px in the picture's middle, 224 px"


def test_pictures_are_the_files(options: Options):
    """Stored whole and byte by byte: no second JPEG between the dataset and the network; masks too are whole."""
    reader = opened(options)
    for i in (0, 7):
        assert bytes(reader.crops[int(reader.rows[i])]) == (Path(options.root) / reader.sample_name(i)).read_bytes()
        found = cv2.imdecode(reader.masks[int(reader.rows[i])], cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(found, read_mask(options, i % SAMPLES))


def test_masks_that_are_no_hand(options: Options, tmp_path: Path):
    """An empty mask, and one of a few pixels, drop the sample in all versions, counted by reason; the rest is as before."""
    write_tree(tmp_path / "tree", HANDS["right"], SAMPLES, 0, versions=2)
    empty, few = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    few[50:56, 50:54] = 255
    for sample, mask in ((1, empty), (4, few)):
        cv2.imwrite(str(tmp_path / "tree" / "training" / "mask" / f"{sample:08d}.jpg"), mask)
    chosen = options.model_copy(update={"root": str(tmp_path / "tree"), "prepared": str(tmp_path / "prepared")})
    done = prepare(chosen, HANDS)
    assert done.counts["excluded"] == {"no hand in the mask": 4} and "left out: 4 no hand in the mask" in str(done)
    assert json.loads((tmp_path / "prepared" / "counts.json").read_text())["excluded"] == {"no hand in the mask": 4}
    assert [int(Path(opened(chosen).sample_name(i)).stem) for i in range(4)] == [0, 2, 3, 5]


@pytest.mark.parametrize("bend,text", [
    (Path.unlink, "expected a mask, found nothing; unpack the archive again, or set dataset.box=joints and dataset.masks=false"),
    (lambda path: cv2.imwrite(str(path), np.zeros((120, 160), np.uint8)), "expected 224x224 pixels, found 160x120"),
    (lambda path: path.write_bytes(path.read_bytes()[:-60]), "expected a whole JPEG, found one cut off after")])
def test_broken_masks(options: Options, tmp_path: Path, bend, text: str):
    """A mask that is missing, of another size or cut off: one line with its name, also where masks are not stored; or counted."""
    write_tree(tmp_path / "tree", HANDS["right"], 3, 0, versions=1)
    bend(tmp_path / "tree" / "training" / "mask" / "00000002.jpg")
    chosen = options.model_copy(update={"root": str(tmp_path / "tree"), "prepared": str(tmp_path / "a"), "masks": False})
    with pytest.raises(InputError) as refused:
        prepare(chosen, HANDS)
    assert "00000002.jpg: " in str(refused.value) and text in str(refused.value) and "\n" not in str(refused.value)
    skipping = chosen.model_copy(update={"prepared": str(tmp_path / "b"), "unreadable": "skip"})
    assert prepare(skipping, HANDS).counts["kept"] == 2


def test_folders_of_other_boxes_are_refused(options: Options):
    """A folder cut around masks is not read as one around joints, and the other way."""
    with pytest.raises(InputError, match=r"prepared with dataset\.box=mask, the options say joints"):
        opened(options, box="joints")
    with pytest.raises(InputError, match=r"crop_rule=published is CMR's crop.*expected dataset\.box=mask with it, found joints"):
        opened(options, "evaluation", box="joints", crop_rule="published")


def test_in_a_mixture(options: Options, tmp_path: Path):
    """Beside a part that is cut around joints, in one batch: each row's crop is what its own reader gives."""
    joints = options.model_copy(update={"box": "joints", "prepared": str(tmp_path)})
    prepare(joints, HANDS)
    parts = [{"dataset": part.model_dump(), "split": "training"} for part in (options, joints)]
    both = mixed.open_reader(mixed.Options(name="mixed", train=parts), CROP, CMR, split="train", train=True, seed=3, hands=HANDS)
    batch = both.batch(default_collate([both[(0, i)] for i in range(len(both))]))
    for number, part in enumerate(both.parts):
        rows = (batch.index // (2 * SAMPLES) == number).nonzero().flatten()
        assert len(rows) == 2 * SAMPLES
        for row in rows.tolist():
            turn, own = 0, int(batch.index[row]) % (2 * SAMPLES)
            alone = part.batch(default_collate([part[(turn, own)]]))
            torch.testing.assert_close(batch.crop_from_image[row], alone.crop_from_image[0])
            assert torch.equal(batch.mask[row], alone.mask[0])
