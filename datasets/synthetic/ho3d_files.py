"""HO3D's files as bytes and text: names, meta pickles, depth, segmentation, calibration (specs/datasets.md 1.3).

Pickles are Python 2's: protocol 2, byte strings, the names of old numpy. They are emitted here, so that their bytes depend on no
version of anything, and they want encoding='latin1' as the originals do. What the spec leaves open is said where it is chosen.
"""
import struct
from typing import NamedTuple

import cv2
import numpy as np

DEPTH_UNIT_M = 0.00012498664727900177
# Letters of the sequences' names, one person each. SB's cameras are divided, SM's first recording is evaluated, MPM and AP are
# met in evaluation only: as in the real set, whose further stems (GSF, SMu, MC, ...) are left out. So few people have every kind.
PEOPLE = ("SB", "SM", "MPM", "ABF", "AP", "BB", "GPMF", "MDF", "ShSu", "SiBF")
HELD_OUT, DIVIDED, ONE_CAMERA = ("MPM", "AP"), "SB", "SM"
THINGS = {2: "003_cracker_box", 3: "004_sugar_box", 5: "006_mustard_bottle", 9: "010_potted_meat_can", 10: "011_banana",
          11: "019_pitcher_base", 12: "021_bleach_cleanser", 14: "025_mug", 15: "035_power_drill", 17: "037_scissors"}
# RGB of (hand, thing) in the rendered segmentations, and their format; third-party readers of each version expect these.
SEGMENTATION = {"v2": (((255, 0, 0), (0, 0, 255)), "jpg"), "v3": (((0, 0, 255), (0, 255, 0)), "png")}
PICTURES = {"v2": "png", "v3": "jpg"}


class Recording(NamedTuple):
    """What all cameras saw of a person's `number`-th (from 1) handling of a thing. person: place in PEOPLE."""

    person: int
    number: int
    cameras: int

    @property
    def stem(self) -> str:
        """The name that its sequences share."""
        return f"{PEOPLE[self.person]}{self.number}"

    @property
    def sequences(self) -> tuple[str, ...]:
        """Each camera's folder: the stem and the camera's digit, or the stem alone."""
        return (self.stem,) if self.cameras == 1 else tuple(f"{self.stem}{camera}" for camera in range(self.cameras))

    @property
    def splits(self) -> tuple[str, ...]:
        """Each camera's split: train or evaluation."""
        letters = PEOPLE[self.person]
        if letters == ONE_CAMERA:
            held = [self.number == 1]
        elif letters == DIVIDED:
            held = [self.number % 2 == 0] if self.cameras == 1 else [camera % 2 == 1 for camera in range(self.cameras)]
        else:
            held = [letters in HELD_OUT] * self.cameras
        return tuple("evaluation" if one else "train" for one in held)


def recordings(people: int, each: int, cameras: int) -> list[Recording]:
    """All recordings, person by person, in the order of the lists."""
    return [Recording(person, number, 1 if PEOPLE[person] == ONE_CAMERA else cameras)
            for person in range(people) for number in range(1, each + 1)]


def pickle_bytes(value: object) -> bytes:
    """A dict of arrays, text, numbers, lists and None as Python 2 and its numpy pickled it by protocol 2."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, (str, bytes)):
        raw = value.encode("latin1") if isinstance(value, str) else value
        return (b"U" + struct.pack("<B", len(raw)) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, np.ndarray):
        return _array_opcodes(np.ascontiguousarray(value))
    raise TypeError(f"no pickle of HO3D's holds a {type(value).__name__}")


def _array_opcodes(array: np.ndarray) -> bytes:
    """numpy's own way: an empty array is called into being, then given its state; the data type likewise."""
    order = array.dtype.str[0]
    dtype = b"cnumpy\ndtype\n" + _opcodes((array.dtype.str[1:], False, True)) + b"R"
    dtype += _opcodes((3, order, None, None, None, -1, -1, 0)) + b"b"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _opcodes((0,)) + _opcodes("b") + b"tR"
    state = b"(" + _opcodes(1) + _opcodes(array.shape) + dtype + _opcodes(False) + _opcodes(array.tobytes()) + b"t"
    return empty + state + b"b"


def _png_bytes(image: np.ndarray) -> bytes:
    options = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB)
    return cv2.imencode(".png", np.ascontiguousarray(image), options)[1].tobytes()


def picture_bytes(image: np.ndarray, form: str, quality: int, sampling: int = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420) -> bytes:
    """RGB uint8 (h,w,3) as "png", or as "jpg" of the quality and colour sampling given."""
    if form == "png":
        return _png_bytes(image[..., ::-1])
    options = (cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling)
    return cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes()


def depth_png_bytes(millimetres: np.ndarray) -> bytes:
    """Depth (h,w) in mm as an 8-bit RGB picture: red the low byte, green the high byte, in units of DEPTH_UNIT_M."""
    units = np.rint(np.minimum(millimetres * (0.001 / DEPTH_UNIT_M), 65535)).astype(np.int64)
    return _png_bytes(np.stack([0 * units, units >> 8, units & 255], -1).astype(np.uint8))  # OpenCV takes BGR


def segmentation_bytes(hand: np.ndarray, thing: np.ndarray, version: str) -> bytes:
    """Masks (h,w) of hand and thing at a quarter of the resolution, in the version's colours on black."""
    colours, form = SEGMENTATION[version]
    rows, columns = (slice(1, 4 * (size // 4), 4) for size in hand.shape)  # near the middle of each cell
    image = np.zeros((hand.shape[0] // 4, hand.shape[1] // 4, 3), np.uint8)
    image[hand[rows, columns]], image[thing[rows, columns]] = colours
    return picture_bytes(image, form, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


def calibration(K: np.ndarray, camera_from_table: np.ndarray, order: np.ndarray, width: int, height: int) -> dict[str, str]:
    """Text of each file of a recording's calibration folder; K (c,3,3), poses (c,4,4) of the cameras by digit.

    order: the cameras' digits; position i of it is what trans_<i>.txt (OpenCV axes, to the first position's camera) and
    cam_<i>_intrinsics.txt tell of.
    """
    files = {"cam_orders.txt": " ".join(map(str, order)) + "\n", "cam_0_depth_scale.txt": f"{DEPTH_UNIT_M!r}\n"}
    for i, camera in enumerate(order):
        common = camera_from_table[order[0]] @ np.linalg.inv(camera_from_table[camera])
        files[f"trans_{i}.txt"] = "".join(" ".join(f"{v:.12f}" for v in row) + "\n" for row in common)
        fx, fy, cx, cy = K[camera][[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        files[f"cam_{i}_intrinsics.txt"] = (f"width: {width}, height: {height}, fx: {fx!r}, fy: {fy!r}, ppx: {cx!r}, "
                                            f"ppy: {cy!r}, model: Brown Conrady, coeffs: [0.0, 0.0, 0.0, 0.0, 0.0]\n")
    return files
