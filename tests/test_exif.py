"""Focal lengths that a camera wrote: by film equivalent and by pixel pitch, resized, cropped, turned, damaged; and the order of
the sources of a camera matrix."""
import json
import math

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from src.demo_camera import CameraSource
from src.demo_input import read_picture
from src.exif import FOCAL_35MM, FOCAL_MM, HEIGHT, IFD, PLANE_UNIT, PLANE_X, WIDTH, exif_focal
from utils.errors import InputError

SIZE = (400, 300)
DIAGONAL = math.hypot(36, 24)


def photo(path, tags: dict, size=SIZE, orientation: int = 1):
    """A JPEG with these EXIF tags, as a camera writes them."""
    picture = Image.new("RGB", size, (200, 40, 90))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(IFD).update(tags)
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize(("tags", "pixels"), [
    ({FOCAL_35MM: 26}, 26 * 500 / DIAGONAL),
    ({FOCAL_35MM: 26, WIDTH: 4000, HEIGHT: 3000}, 26 * 500 / DIAGONAL),  # resized since: angles stay
    ({FOCAL_MM: IFDRational(425, 100), PLANE_X: IFDRational(400, 1), PLANE_UNIT: 4}, 4.25 * 400),
    ({FOCAL_MM: 50.0, PLANE_X: IFDRational(400 * 254, 10 * 36)}, 50 * 400 / 36),  # inches where no unit is given
    ({FOCAL_MM: 5.0, PLANE_X: 40000.0, PLANE_UNIT: 3, WIDTH: 4000, HEIGHT: 3000}, 5 * 4000 * 0.1),
    ({FOCAL_35MM: 0, FOCAL_MM: 5.0, PLANE_X: 80.0, PLANE_UNIT: 4}, 400),  # 0: unknown
])
def test_focal_length(tmp_path, tags, pixels):
    """Tags of one lens, whose focal length in pixels follows by hand."""
    found = exif_focal(photo(tmp_path / "a.jpg", tags), SIZE[1], SIZE[0])
    assert found.pixels == pytest.approx(pixels, rel=1e-3), found.words


def test_film_equivalent_is_of_the_diagonal(tmp_path):
    """43.27 mm equivalent sees a diagonal of 2 atan(1/2), whatever the shape of the picture."""
    for size in ((400, 300), (300, 400), (640, 360)):
        found = exif_focal(photo(tmp_path / "a.jpg", {FOCAL_35MM: 43}, size), size[1], size[0])
        assert 2 * math.atan(math.hypot(*size) / 2 / found.pixels) == pytest.approx(2 * math.atan(DIAGONAL / 2 / 43))


@pytest.mark.parametrize(("tags", "words"), [
    ({}, "nothing of the lens"),
    ({FOCAL_MM: 4.2}, "no focal length"),
    ({FOCAL_MM: 4.2, PLANE_X: IFDRational(0, 0)}, "no focal length"),
    ({FOCAL_MM: 4.2, PLANE_X: 90.0, PLANE_UNIT: 1}, "no focal length"),
    ({FOCAL_35MM: 26, WIDTH: 4000, HEIGHT: 4000}, "4000x4000 picture, this one was cropped"),
    ({FOCAL_35MM: 65000}, "not believable"),
])
def test_exif_that_says_nothing(tmp_path, tags, words):
    """Tags from which no focal length follows: none, with the reason in words."""
    found = exif_focal(photo(tmp_path / "a.jpg", tags), SIZE[1], SIZE[0])
    assert found.pixels is None and words in found.words


def test_unreadable_exif(tmp_path):
    """A damaged EXIF block, at any of many places: never an error, never a wild number; the picture itself is shown."""
    whole = photo(tmp_path / "a.jpg", {FOCAL_35MM: 26, FOCAL_MM: 4.2}).read_bytes()
    start = whole.index(b"Exif")
    unreadable = 0
    for place in range(start, start + 80):
        data = bytearray(whole)
        data[place:place + 4] = b"\xff\xff\xff\xff"
        (tmp_path / "b.jpg").write_bytes(data)
        camera = CameraSource(None, None).camera(tmp_path / "b.jpg", SIZE[1], SIZE[0])
        assert np.isfinite(camera.K).all() and 0.2 * 400 <= camera.K[0, 0] <= 50 * 400
        unreadable += "unreadable" in camera.source
    assert unreadable > 0
    assert read_picture(tmp_path / "b.jpg").shape == (300, 400, 3)


def test_turned_picture(tmp_path):
    """A picture on its side: shown upright, with the same focal length and the principal point in its own middle."""
    flat = photo(tmp_path / "a.jpg", {FOCAL_35MM: 26, WIDTH: 400, HEIGHT: 300})
    turned = photo(tmp_path / "b.jpg", {FOCAL_35MM: 26, WIDTH: 400, HEIGHT: 300}, orientation=6)
    a, b = (CameraSource(None, None).camera(path, *read_picture(path).shape[:2]) for path in (flat, turned))
    assert read_picture(turned).shape == (400, 300, 3)
    assert a.K[0, 0] == b.K[0, 0] == b.K[1, 1] and b.K[:2, 2].tolist() == [149.5, 199.5]
    assert b.source.startswith("EXIF: FocalLengthIn35mmFilm 26 mm") and b.metric


def test_order_of_the_sources(tmp_path):
    """A file goes before a stated field of view, that before EXIF, that before nominal; the words say which; two are refused."""
    path = photo(tmp_path / "a.jpg", {FOCAL_35MM: 26})
    (tmp_path / "K.json").write_text(json.dumps([[700, 0, 200], [0, 700, 150], [0, 0, 1]]))
    asked = [(CameraSource(str(tmp_path / "K.json"), None), path, "file "), (CameraSource(None, 60), path, "stated"),
             (CameraSource(None, None), path, "EXIF"), (CameraSource(None, None), tmp_path / "clip.mp4" / "000001", "nominal")]
    found = [source.camera(picture, 300, 400) for source, picture, _ in asked]
    for camera, (_, _, words) in zip(found, asked):
        assert camera.source.startswith(words)
    assert [camera.metric for camera in found] == [True, True, True, False]
    assert len({camera.K[0, 0] for camera in found}) == 4 and found[3].K[0, 0] == 400
    with pytest.raises(InputError, match="calibrate.K and calibrate.fov are both given"):
        CameraSource(str(tmp_path / "K.json"), 60, "calibrate")
