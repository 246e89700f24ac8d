"""DexYCB's files as bytes and text: names, calibration, labels, world poses (specs/datasets.md 1.1).

Strings that YAML would take for numbers are quoted; extrinsics carry the `!!python/tuple` tag of the originals. Equal arrays give
equal bytes: archives have no dates.
"""
import datetime
import io
import zipfile

import cv2
import numpy as np

SUBJECTS = ("20200709-subject-01", "20200813-subject-02", "20200820-subject-03", "20200903-subject-04", "20200908-subject-05",
            "20200918-subject-06", "20200928-subject-07", "20201002-subject-08", "20201015-subject-09", "20201022-subject-10")
SERIALS = ("836212060125", "839512060362", "840412060917", "841412060263", "932122060857", "932122060861", "932122061900",
           "932122062010")


def subject_name(subject: int) -> str:
    """Folder of a person: the real set's names for its ten, then a new day for every further one."""
    if subject < len(SUBJECTS):
        return SUBJECTS[subject]
    return f"{datetime.date(2021, 1, 1) + datetime.timedelta(subject - len(SUBJECTS)):%Y%m%d}-subject-{subject + 1:02d}"


def session(subject: int) -> str:
    """Name of a person's calibration of the cameras."""
    return f"{subject_name(subject)[:8]}_083000"


def mano_calib(subject: int) -> str:
    """Name of a person's hand calibration: always `_right`, as in the original, and used for both hands."""
    return f"{subject_name(subject)[:8]}_080000_{subject_name(subject)[9:]}_right"


def sequence_name(subject: int, index: int) -> str:
    """Folder of a person's `index`-th recording: time of day rises by half a minute."""
    seconds = 9 * 3600 + 31 * index
    return f"{subject_name(subject)[:8]}_{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


def numbers(values: np.ndarray) -> list[str]:
    """Numbers as yaml 1.1 reads them: never with a bare exponent."""
    return [f"{float(v):.9f}" for v in np.ravel(values)]


def meta_yml(subject: int, cameras: int, frames: int, ids: list[int], grasped: int, side: str) -> str:
    """A sequence's meta.yml."""
    listed = "".join(f"- '{serial}'\n" for serial in SERIALS[:cameras])
    objects = "".join(f"- {i}\n" for i in ids)
    return (f"serials:\n{listed}num_frames: {frames}\nextrinsics: '{session(subject)}'\nycb_ids:\n{objects}"
            f"ycb_grasp_ind: {grasped}\nmano_sides:\n- {side}\nmano_calib:\n- '{mano_calib(subject)}'\n")


def intrinsics_yml(K: np.ndarray) -> str:
    """Calibration of one camera; depth is registered to colour, so its block is the same."""
    fx, fy, cx, cy = numbers(K[[0, 1, 0, 1], [0, 1, 2, 2]])
    block = f"  fx: {fx}\n  fy: {fy}\n  ppx: {cx}\n  ppy: {cy}\n"
    return f"color:\n{block}depth:\n{block}"


def extrinsics_yml(poses: dict[str, np.ndarray], master: str) -> str:
    """Rigid maps (3,4) or (4,4) to the world by serial (and `apriltag`), row by row, metres."""
    text = "extrinsics:\n"
    for key, pose in poses.items():
        name = key if key == "apriltag" else f"'{key}'"
        text += f"  {name}: !!python/tuple\n" + "".join(f"  - {v}\n" for v in numbers(pose[:3, :4]))
    return text + f"master: '{master}'\n"


def mano_yml(shape: np.ndarray) -> str:
    """A person's shape coefficients."""
    return "betas:\n" + "".join(f"- {v}\n" for v in numbers(shape))


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """An npz archive, lightly compressed, without dates."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getbuffer(), zipfile.ZIP_DEFLATED, 1)
    return file.getvalue()


def jpeg_bytes(image: np.ndarray, quality: int) -> bytes:
    """RGB uint8 picture as JPEG."""
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


def depth_png_bytes(depth: np.ndarray) -> bytes:
    """uint16 millimetres as PNG, fast: at the default compression a frame costs 30 ms."""
    options = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB)
    return cv2.imencode(".png", depth, options)[1].tobytes()
