"""Hand model files: MANO_RIGHT.pkl / MANO_LEFT.pkl (original or re-saved) and this project's .npz (specs: datasets 3.1, 3.4).

Both hold MANO's arrays under MANO's names. The left hand's question: MANO's published left shapedirs are the right hand's,
not mirrored, so equal coefficients give different left and right hands. A dataset says how its labels were made:
`as_is` (DexYCB), `flip_x` (InterHand2.6M: x negated, which makes it the right hand's mirror image), `negate` (H2O3D: all three).
`sha256` is taken over the arrays, not the file: the pickle, a re-save and the converted .npz are one hand.
"""
import hashlib
import logging
import re
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from utils import files
from utils.errors import InputError
from utils.joints import PARENTS
from utils.mano_pickle import read_mano_pickle

Shapedirs = Literal["as_is", "flip_x", "negate"]
Side = Literal["right", "left"]

SHAPES = {
    "v_template": (778, 3), "shapedirs": (778, 3, 10), "posedirs": (778, 3, 135), "J_regressor": (16, 778), "weights": (778, 16),
    "f": (1538, 3), "hands_mean": (45,), "hands_components": (45, 45),
}
FORMAT = "hand-model-1"
TEXTS = ("name", "side", "provenance", "licence", "shapedirs_state")
EXTRAS = ("joint_axes", "axis_limits", "joint_limits", "pose_std")
_REMEDY = ("download mano_v1_2 from https://mano.is.tue.mpg.de and put its MANO_RIGHT.pkl and MANO_LEFT.pkl into template/, "
           "or set hand=template/free_hand_right.npz")
_AXIAL = np.array([1.0, -1.0, -1.0])  # how an axis, and each axis-angle vector, mirrors under x -> -x
_POLAR = np.array([-1.0, 1.0, 1.0])
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HandArrays:
    """MANO's arrays (float64, metres; f int64) and what is known of them.

    v_template (778,3) · shapedirs (778,3,10) · posedirs (778,3,135) · J_regressor (16,778) · weights (778,16) · f (1538,3) ·
    hands_mean (45) · hands_components (45,45), rows = components · name · side · provenance and licence: one line each ·
    shapedirs_state: as_is | flip_x | negate, or `mirrored` where the left hand is the right one's mirror image ·
    extras, where the file has them: joint_axes (15,3,3) rows bend, spread, twist; axis_limits (15,3,2) rad about these;
    joint_limits (15,3,2) rad, smallest and largest axis-angle components; pose_std (45) of the pose coefficients.
    """

    v_template: np.ndarray
    shapedirs: np.ndarray
    posedirs: np.ndarray
    J_regressor: np.ndarray
    weights: np.ndarray
    f: np.ndarray
    hands_mean: np.ndarray
    hands_components: np.ndarray
    name: str = "hand"
    side: Side = "right"
    provenance: str = ""
    licence: str = ""
    shapedirs_state: str = "as_is"
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in SHAPES:
            object.__setattr__(self, key, np.ascontiguousarray(getattr(self, key), np.int64 if key == "f" else np.float64))

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the eight arrays and the side: equal for a pickle, its re-saves and its .npz."""
        digest = hashlib.sha256(self.side.encode())
        for key in SHAPES:
            digest.update(key.encode() + getattr(self, key).tobytes())
        return digest.hexdigest()

    def with_shapedirs(self, wanted: Shapedirs) -> "HandArrays":
        """The left hand with the shapedirs a dataset's labels were made with; raises InputError where there is no way there."""
        if wanted not in get_args(Shapedirs):
            raise InputError(f"shapedirs={wanted}: expected one of {', '.join(get_args(Shapedirs))}")
        mirrored = self.shapedirs_state == "mirrored"  # the mirror image *is* what flip_x mends an unmended hand to
        if wanted in ("as_is", self.shapedirs_state) or (wanted == "flip_x" and mirrored):
            return self
        if self.side != "left":
            raise InputError(f"shapedirs={wanted} is for left hands, but {self.name} is a right one; leave it at as_is")
        if self.shapedirs_state != "as_is":
            raise InputError(f"shapedirs={wanted}: {self.name} has {self.shapedirs_state} ones already; start from MANO_LEFT.pkl")
        sign = _POLAR if wanted == "flip_x" else -np.ones(3)
        return replace(self, shapedirs=self.shapedirs * sign[:, None], shapedirs_state=wanted)

    def mirrored(self) -> "HandArrays":
        """The same hand of the other side (x -> -x): equal coefficients give mirror images."""
        axial9 = np.tile(np.outer(_POLAR, _POLAR).ravel(), 15)  # R -> S R S, entry by entry
        axial = np.tile(_AXIAL, 15)
        extras = dict(self.extras)
        if "joint_axes" in extras:
            extras["joint_axes"] = extras["joint_axes"] * _AXIAL
        if "joint_limits" in extras:  # of x they stay, those of y and z change sign and places
            x, yz = np.split(extras["joint_limits"], [1], axis=1)
            extras["joint_limits"] = np.concatenate((x, -yz[..., ::-1]), 1)
        return replace(
            self, v_template=self.v_template * _POLAR, shapedirs=self.shapedirs * _POLAR[:, None],
            posedirs=self.posedirs * _POLAR[:, None] * axial9, f=self.f[:, [0, 2, 1]], hands_mean=self.hands_mean * axial,
            hands_components=self.hands_components * axial, side="left" if self.side == "right" else "right",
            shapedirs_state="mirrored", extras=extras,
            name=re.sub("right|left|RIGHT|LEFT", lambda m: _OTHER[m.group()], self.name))


_OTHER = {"right": "left", "left": "right", "RIGHT": "LEFT", "LEFT": "RIGHT"}


def read_hand_file(path: str | Path, shapedirs: Shapedirs = "as_is", side: Side | None = None) -> HandArrays:
    """A hand model from a MANO pickle or this project's .npz, checked; the content decides, not the suffix.

    shapedirs: for left hands, as the dataset's labels were made. side: of a pickle whose file name says neither left nor right.
    Raises InputError: absent, another kind of file, truncated, keys missing, wrong shapes, not finite, a pickle that runs code.
    """
    path = files.require_file(path, _REMEDY)
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    arrays = _from_npz(path) if zipped else _from_pickle(path, side)
    try:
        return arrays.with_shapedirs(shapedirs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def write_hand_npz(path: str | Path, arrays: HandArrays, dtype: type = np.float64) -> None:
    """Write a hand model; `dtype` float64 is exact, float32 halves the file. Same arrays, same bytes."""
    content = {key: getattr(arrays, key).astype(np.uint16 if key == "f" else dtype) for key in SHAPES}
    extras = {key: np.asarray(value, dtype) for key, value in arrays.extras.items()}
    texts = {key: np.array(getattr(arrays, key)) for key in TEXTS}
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, format=np.array(FORMAT), **texts, **content, **extras)


def convert_mano(path: str | Path, out: str | Path, shapedirs: Shapedirs = "as_is") -> HandArrays:
    """`run.py convert mano FILE --out FILE`: MANO's pickle as this project's .npz, bit for bit the same numbers.

    MANO's licence goes with the result: keep it, like the pickle, out of anything you pass on.
    """
    if Path(out).suffix != ".npz":
        raise InputError(f"--out {out}: expected a file that ends in .npz")
    arrays = read_hand_file(path, shapedirs)
    arrays = replace(arrays, provenance=f"converted from {Path(path).name} (sha256 {files.sha256(path)})")
    write_hand_npz(out, arrays)
    return arrays


def _from_pickle(path: Path, side: Side | None) -> HandArrays:
    content = read_mano_pickle(path, [*SHAPES, "kintree_table"], _REMEDY)
    arrays = _checked(path, content)
    kintree = content.get("kintree_table")
    if isinstance(kintree, np.ndarray) and (kintree.shape != (2, 16) or tuple(kintree[0, 1:]) != PARENTS[1:]):
        raise InputError(f"{path}: kintree_table: expected MANO's 16 joints, found another skeleton; {_REMEDY}")
    return HandArrays(**arrays, name=path.stem, side=side or _side_of(path), provenance=f"MANO pickle {path.name}",
                      licence="MANO licence (https://mano.is.tue.mpg.de): research only, not to be passed on")


def _side_of(path: Path) -> Side:
    name = path.name.lower()
    if ("left" in name) and ("right" in name):
        raise InputError(f"{path}: the file name says both left and right; rename it to MANO_LEFT.pkl or MANO_RIGHT.pkl")
    if ("left" not in name) and ("right" not in name):
        _LOG.warning("%s: the file name says neither left nor right; taken for a right hand", path)
    return "left" if "left" in name else "right"


def _from_npz(path: Path) -> HandArrays:
    remedy = "write it again (`run.py convert mano`, or restore template/ from the repository)"
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError, MemoryError) as error:
        raise InputError(f"{path}: expected a hand model .npz, found a file that breaks ({error}); {remedy}") from error
    if "format" not in content or str(content["format"]) != FORMAT:
        found = f"format {content['format']}" if "format" in content else f"arrays {', '.join(sorted(content)[:4])}"
        raise InputError(f"{path}: expected a hand model .npz of format {FORMAT}, found {found}; {remedy}")
    texts = {key: str(content[key]) for key in TEXTS if key in content}
    if texts.get("side") not in get_args(Side):
        raise InputError(f"{path}: side: expected right or left, found {texts.get('side')}; {remedy}")
    if texts["side"] == "left":  # a left hand made by this project is a mirror image unless it says otherwise
        texts.setdefault("shapedirs_state", "mirrored")
    extras = {key: content[key].astype(np.float64) for key in EXTRAS if key in content}
    return HandArrays(**_checked(path, content, remedy), **texts, extras=extras)


def _checked(path: Path, content: dict, remedy: str = _REMEDY) -> dict[str, np.ndarray]:
    """The eight arrays, or an InputError that names the first that is not MANO's."""
    if missing := [key for key in SHAPES if key not in content]:
        raise InputError(f"{path}: expected a hand model, but it has no {', '.join(missing)}; {remedy}")
    for key, shape in SHAPES.items():
        value = content[key]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise InputError(f"{path}: {key}: expected an array of numbers, found {type(value).__name__.lstrip('_')}; {remedy}")
        if value.shape != shape:
            raise InputError(f"{path}: {key}: expected shape {shape}, found {value.shape}; {remedy}")
        if not np.isfinite(value).all():
            raise InputError(f"{path}: {key}: {int((~np.isfinite(value)).sum())} values are not finite; {remedy}")
    if content["f"].min() < 0 or content["f"].max() >= 778:
        raise InputError(f"{path}: f: expected vertex ids 0..777, found {content['f'].min()}..{content['f'].max()}; {remedy}")
    for key in ("J_regressor", "weights"):
        if (worst := np.abs(content[key].sum(1, dtype=np.float64) - 1).max()) > 0.01:
            raise InputError(f"{path}: {key}: expected rows that add up to 1, found one off by {worst:.3g}; {remedy}")
    return {key: content[key] for key in SHAPES}
