"""Identity files: one person's hand shape, whose hand model it belongs to, and what it was made from.

`<subject>.json`, written by `calibrate`, read by `test`, `demo` and `refine`. The ten coefficients mean something only with the
hand model they were calibrated on, so the file holds that model's name and sha256 and is refused with any other. A left
hand's shape is that of its mirror image, like every left hand in this project. `covariance` is null where a method gives no
posterior; `standard_error` is the plain std / sqrt(n), which is too small where images of one sequence err alike. Version 2 added
what the size stands on (`cue`), the standard deviation of the mesh and the decision whether these images are enough; files of
version 1 are read as well.
"""
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from utils.errors import InputError
from utils.files import read_json, write_json

VERSION = 2
SINCE_2 = frozenset({"cue", "side", "effective_n", "mesh_sd_mm", "vertex_sd_mm", "stop"})
KIND = "identity"
# Other json files that `calibrate` writes into the same folder.
COMPANIONS = ("calibration", "calibration curve", "calibration likelihood", "calibration coverage")
COEFFICIENTS, VERTICES = 10, 778
_REMEDY = "write it again with `run.py calibrate`"


class HandInfo(Protocol):
    """What an identity file must know of a hand model (utils.hand.HandModel has it)."""

    name: str
    side: str
    sha256: str


@dataclass(frozen=True)
class Identity:
    """One person's calibrated shape.

    shape: ten coefficients of the hand model `hand` ({name, sha256}) · covariance: (10,10) or None · n: images used (0: a ruler
    alone) · method: random | top | weighted | all | posterior | ... · cue: what the absolute size stands on · side: of the hand
    model, on which other hands count mirrored · effective_n: as many independent images would say as much · mesh_sd_mm: rms over
    the vertices of vertex_sd_mm (778), each the root of the trace of that vertex's covariance, wrists aligned · stop: {enough,
    enough_mm, mesh_sd_mm, floor_mm, further_images, text}, see src/calibration_stop.py · confidence_used · standard_error: ten,
    or None for one image · spread: {shape_std: ten or None, rest_mesh_mm: float or None} over the images used · settings: seed,
    draw, temperature... · source: predictions file, dataset protocol with its index hash, sequences, images available · frames:
    names of the images used, so that none of them is scored unawares; None where they have no names (photographs).
    """

    subject: int
    shape: np.ndarray
    hand: dict[str, str]
    n: int
    method: str
    covariance: np.ndarray | None = None
    confidence_used: bool = False
    standard_error: np.ndarray | None = None
    spread: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    frames: tuple[str, ...] | None = None
    cue: str | None = None
    side: str | None = None
    effective_n: float | None = None
    mesh_sd_mm: float | None = None
    vertex_sd_mm: np.ndarray | None = None
    stop: dict[str, Any] | None = None


def write_identity(path: str | Path, identity: Identity) -> None:
    """Write one identity file, whole or not at all. The coefficients come back bit for bit."""
    value = {key: item.tolist() if isinstance(item, np.ndarray) else item for key, item in asdict(identity).items()}
    write_json(path, {"kind": KIND, "version": VERSION, **value})


def read_identity(path: str | Path, hand: HandInfo | None = None) -> Identity:
    """Read one identity file; with `hand` given, refuse the shape of another hand model or side.

    Raises InputError: not an identity file, another version, missing keys, wrong length, not finite, another hand model.
    """
    value = read_json(path, _REMEDY)
    if not isinstance(value, dict) or value.get("kind") != KIND:
        found = value.get("kind", "no kind") if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{path}: expected an identity file (kind: {KIND}), found {found!r}; {_REMEDY}")
    if value.get("version") not in (1, VERSION):
        raise InputError(f"{path}: expected version {VERSION} or 1 of identity files, found {value.get('version')!r}; {_REMEDY}")
    names = {field.name for field in fields(Identity)} - (SINCE_2 if value["version"] == 1 else set())
    if wrong := names.symmetric_difference(value.keys() - {"kind", "version"}):
        what = "lacks" if wrong & names else "has the unknown"
        raise InputError(f"{path}: the identity file {what} {', '.join(sorted(wrong))}; {_REMEDY}")
    identity = _checked(path, {key: value[key] for key in names})
    if hand is not None and identity.side not in (None, hand.side):
        raise InputError(f"{path}: a shape of a {identity.side} hand model, but the one in use is a {hand.side} hand; set hand= "
                         "to the model it was calibrated with (hands of the other side are mirrored onto it)")
    if hand is not None and identity.hand["sha256"] != hand.sha256:
        theirs = f"{identity.hand['name']} ({identity.hand['sha256'][:12]})"
        raise InputError(f"{path}: a shape of the hand model {theirs}, but the one in use is {hand.name} ({hand.sha256[:12]}); "
                         "set hand= to that model, or calibrate with this one")
    return identity


def _checked(path: str | Path, value: dict[str, Any]) -> Identity:
    """The fields, each of its type and size."""
    def refuse(key: str, expected: str) -> InputError:
        return InputError(f"{path}: {key}: expected {expected}, found {str(value[key])[:60]}; {_REMEDY}")

    for key, low in (("subject", 0), ("n", 0)):
        if isinstance(value[key], bool) or not isinstance(value[key], int) or value[key] < low:
            raise refuse(key, f"a whole number from {low} up")
    hand = value["hand"]
    if not isinstance(hand, dict) or not all(isinstance(hand.get(key), str) and hand[key] for key in ("name", "sha256")):
        raise refuse("hand", "the hand model's name and sha256")
    if not isinstance(value["method"], str):
        raise refuse("method", "the name of the calibration method")
    shapes = {"shape": (COEFFICIENTS,), "covariance": (COEFFICIENTS, COEFFICIENTS), "standard_error": (COEFFICIENTS,),
              "vertex_sd_mm": (VERTICES,), "mesh_sd_mm": (), "effective_n": ()}
    for key, shape in shapes.items():
        if value.get(key) is None and key != "shape":
            continue
        array = number_array(value[key])
        if array is None or array.shape != shape:
            raise refuse(key, f"{' x '.join(map(str, shape))} finite numbers" if shape else "a finite number, or null")
        value[key] = array if shape else float(array)
    if value.get("side") not in (None, "right", "left"):
        raise refuse("side", "right, left or null")
    for key, kind, expected in (("cue", str, "a text"), ("stop", dict, "an object")):
        if value.get(key) is not None and not isinstance(value[key], kind):
            raise refuse(key, f"{expected}, or null")
    frames = value["frames"]
    if frames is not None and not (isinstance(frames, list) and all(isinstance(frame, str) for frame in frames)):
        raise refuse("frames", "a list of names, or null")
    value["frames"] = None if frames is None else tuple(frames)
    return Identity(**value)


def number_array(value: object) -> np.ndarray | None:
    """Nested lists of finite numbers, as json gives them, as float64; None for anything else (texts and booleans are none)."""
    try:
        array = np.array(value)
    except ValueError:  # lists of different lengths
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" and np.isfinite(array).all() else None


def identity_files(spec: str | Path | Sequence[str | Path]) -> list[Path]:
    """The identity files of a folder, one file, or a list of files."""
    if not isinstance(spec, (str, Path)):
        return [Path(item) for item in spec]
    path = Path(spec)
    if not path.is_dir():
        return [path]
    found = [file for file in sorted(path.glob("*.json")) if not _is_companion(file)]
    if not found:
        raise InputError(f"{path}: expected identity files (<subject>.json), found none; write them with `run.py calibrate`")
    return found


def _is_companion(path: Path) -> bool:
    value = read_json(path, _REMEDY)
    return isinstance(value, dict) and value.get("kind") in COMPANIONS


def load_identities(spec: str | Path | Sequence[str | Path], hand: HandInfo | None = None) -> dict[int, np.ndarray]:
    """Shapes by person: a folder or list of identity files -> {subject: (10,) float64}.

    Raises InputError as read_identity does, and where two files name the same person.
    """
    shapes: dict[int, np.ndarray] = {}
    origin: dict[int, Path] = {}
    for path in identity_files(spec):
        identity = read_identity(path, hand)
        if identity.subject in shapes:
            raise InputError(f"{path}: subject {identity.subject} has a shape already, from {origin[identity.subject]}; "
                             "name one file per person")
        shapes[identity.subject], origin[identity.subject] = identity.shape, path
    return shapes


def load_draws(folder: str | Path, hand: HandInfo | None = None) -> dict[str, dict[int, np.ndarray]]:
    """Shapes of several draws: {draw: {subject: (10,)}} from the subfolders that `calibrate.write_draws` made, in order.

    A folder without subfolders is one draw, named "". Raises InputError as load_identities does.
    """
    return {name: load_identities(path, hand) for name, path in draw_folders(folder).items()}


def draw_folders(folder: str | Path) -> dict[str, Path]:
    """{draw: its folder}; {"": folder} where the identity files lie in `folder` itself."""
    folders = sorted((path for path in Path(folder).glob("*") if path.is_dir()), key=lambda path: (len(path.name), path.name))
    if folders and not any(Path(folder).glob("*.json")):
        return {path.name: path for path in folders}
    return {"": Path(folder)}


def require_unscored(spec: str | Path | Sequence[str | Path], scored: Iterable[str]) -> None:
    """InputError where an identity was calibrated on a frame that is about to be scored, unless its file says that this was asked
    for (calibrate.allow_scored_frames). spec: as load_identities, or a folder of draws; scored: names of the frames."""
    names = set(scored)
    folders = draw_folders(spec).values() if isinstance(spec, (str, Path)) else [spec]
    for path in (file for folder in folders for file in identity_files(folder)):
        identity = read_identity(path)
        if identity.frames and not (identity.source or {}).get("scored_frames_allowed"):
            require_apart(identity.frames, names, str(path))


def require_apart(calibration: Iterable[str], scored: Iterable[str], where: str) -> None:
    """InputError where frames that calibrate are also scored; `where` names the two files in the message.

    Seed: the original calibrated on the very test images it then scored.
    """
    used = set(calibration)
    if shared := sorted(used.intersection(scored)):
        raise InputError(f"{where}: {len(shared)} of {len(used)} calibration frames are scored as well (first: {shared[0]}); "
                         "choose others with calibrate.sequences, or set calibrate.allow_scored_frames=true as the original did")
