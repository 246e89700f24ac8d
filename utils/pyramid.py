"""The mesh pyramid of a hand model, made once and kept under template/, or read from a file (specs/cmr_boukhayma_metro.md 2.6).

A pyramid belongs to one mesh: files say whose they are (the hand's sha256, its faces), and one of another mesh is refused.
The original's transform.pkl is read without running it; it brings faces, kept vertices and weights, the spirals are made here.
"""
import hashlib
import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from utils.errors import InputError
from utils.files import atomic_path, require_file
from utils.hand import HandModel
from utils.mesh import Pyramid, UpWeights, build_pyramid
from utils.npz import write_array
from utils.strict import ROOT, Strict
from utils.transform_file import read_transform

FORMAT = "mesh-pyramid-1"
FOLDER = ROOT / "template"
PLACE_M = (0.0, 0.0, 0.3)  # where the published template stands: the published up-sampling weights depend on it
PARTS = ("faces", "kept", "columns", "weights", "spirals")
# First hex digits of the SHA-256 (int64, little endian) of CMR's published pyramid, level by level (spec 2.5, 2.6).
PUBLISHED = {
    "kept": ("7742416827363290", "5f8d5aede9815ddd", "35871aca90824973", "4a092827b21bc826"),
    "faces": ("56db13a9e20d2e50", "505206f2e26fe991", "adc0a18d03e559c3", "f41d374303a78afc", "d297b54ca1ab80e8"),
    "spirals": ("0d757960", "6e9a068f", "cb36e18a", "8811ea0b"),
}
_LOG = logging.getLogger(__name__)


class PyramidOptions(Strict):
    """How a mesh decoder's pyramid is made; the defaults are the published ones.

    template: the mesh that is decimated: `mean_pose` (zero shape, mean pose, 0.3 m away, rounded to 6 digits, as the published
    template.ply) or `rest` (the flat hand at the hand model's origin) · up_weights: see utils.mesh.upsampling · keep_boundary:
    see utils.decimation.decimate · seq_length, dilation: of the spirals · factors: how many times fewer vertices each next
    level has · pyramid: a file in place of all that, an .npz that this project wrote for this hand with the same options, or
    the original's transform.pkl, to which the spirals and factors above must fit.
    """

    template: Literal["mean_pose", "rest"] = "mean_pose"
    up_weights: UpWeights = "published"
    keep_boundary: bool = False
    seq_length: Annotated[int, Field(ge=1, le=778)] = 27
    dilation: Annotated[int, Field(ge=1, le=778)] = 1
    factors: Annotated[tuple[Annotated[float, Field(gt=1)], ...], Field(min_length=1)] = (2, 2, 2, 2)
    pyramid: str | None = None


def pyramid_of(hand: HandModel, options: PyramidOptions, folder: str | Path = FOLDER) -> Pyramid:
    """The pyramid of `hand`: from options.pyramid, or from `folder`, where it is put if it is not there yet.

    A folder that cannot be written is a warning. Raises InputError: a file of another mesh or made with other options, a
    damaged one, more spiral steps than a level has vertices.
    """
    if options.pyramid is None:
        pyramid = _kept(hand, options, Path(folder))
    else:
        path = require_file(options.pyramid, "name a pyramid in `pyramid`, or leave that out and one is made")
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
        pyramid = _read(path, hand, options, "leave `pyramid` out and one is made") if zipped else \
            read_transform(path, hand.arrays.f, options.factors, options.seq_length, options.dilation)
    if is_published(pyramid):
        _LOG.info("mesh pyramid of %s: CMR's published one (vertices, faces, spirals); its published weights fit", hand.name)
    return pyramid


def template_verts(hand: HandModel, template: str) -> np.ndarray:
    """The mesh (778,3) float64, metres, that is decimated; see PyramidOptions."""
    arrays = hand.arrays
    if template == "rest":
        return arrays.v_template.copy()
    exact = HandModel(arrays, torch.float64)
    rotations = exact.rotations_from_pose(torch.zeros(48, dtype=torch.float64), pca=False, flat_mean=False)
    verts = exact(rotations, torch.zeros(10, dtype=torch.float64)).verts.numpy()
    return np.round(verts + PLACE_M, 6)


def cache_path(hand: HandModel, options: PyramidOptions, folder: str | Path = FOLDER) -> Path:
    """Where the pyramid of this hand, made with these options, is kept."""
    identity = json.dumps([FORMAT, hand.sha256, _recipe(options)])
    return Path(folder) / f"pyramid_{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npz"


def write_pyramid(path: str | Path, pyramid: Pyramid, hand: HandModel, options: PyramidOptions) -> None:
    """Write a pyramid with whose it is and how it was made; same pyramid, same bytes. Raises OSError."""
    texts = {"format": FORMAT, "hand": hand.name, "hand_sha256": hand.sha256, "options": _recipe(options)}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for key, text in texts.items():
            write_array(archive, key, np.array(text))
        for part in PARTS:
            for level, array in enumerate(getattr(pyramid, part)):
                write_array(archive, f"{part}_{level}", array)


def published_hashes(pyramid: Pyramid) -> dict[str, tuple[str, ...]]:
    """SHA-256 of the kept vertices, faces and spirals, level by level, cut to as many hex digits as PUBLISHED has."""
    return {part: tuple(hashlib.sha256(np.ascontiguousarray(array, "<i8").tobytes()).hexdigest()[:len(known[0])]
                        for array in getattr(pyramid, part)) for part, known in PUBLISHED.items()}


def is_published(pyramid: Pyramid) -> bool:
    """Whether its vertices, faces and spirals are those of CMR's published files."""
    return published_hashes(pyramid) == PUBLISHED


def _recipe(options: PyramidOptions) -> str:
    """The options that make a pyramid, as one line of json; of a method's options, these alone."""
    chosen = options.model_dump(mode="json", include=set(PyramidOptions.model_fields) - {"pyramid"})
    return json.dumps(chosen, sort_keys=True)


def _kept(hand: HandModel, options: PyramidOptions, folder: Path) -> Pyramid:
    path = cache_path(hand, options, folder)
    if path.is_file():
        return _read(path, hand, options, "remove it, and it is made again")
    pyramid = build_pyramid(template_verts(hand, options.template), hand.arrays.f, options.factors, options.seq_length,
                            options.dilation, options.up_weights, options.keep_boundary)
    try:
        write_pyramid(path, pyramid, hand, options)
    except OSError as error:
        _LOG.warning("%s: the mesh pyramid could not be kept (%s); it is made anew each time", path, error.strerror or error)
    return pyramid


def _read(path: Path, hand: HandModel, options: PyramidOptions, remedy: str) -> Pyramid:
    """A pyramid that write_pyramid wrote for this hand with these options."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: expected a mesh pyramid, found a damaged file ({error}); {remedy}") from error
    if str(content.get("format")) != FORMAT:
        raise InputError(f"{path}: expected a mesh pyramid ({FORMAT}), found {content.get('format', 'another file')}; {remedy}")
    if str(content.get("hand_sha256")) != hand.sha256:
        raise InputError(f"{path}: expected the mesh pyramid of {hand.name} ({hand.sha256[:12]}), found that of another mesh, "
                         f"{content.get('hand')} ({str(content.get('hand_sha256'))[:12]}); {remedy}, or set hand to that one")
    if str(content.get("options")) != _recipe(options):
        raise InputError(f"{path}: expected a mesh pyramid made with {_recipe(options)}, found one made with "
                         f"{content.get('options')}; {remedy}, or set these options")
    levels = len(options.factors)
    try:
        parts = [tuple(content[f"{part}_{level}"] for level in range(levels + (part == "faces"))) for part in PARTS]
        pyramid = Pyramid(*parts)
        fits = _fits(pyramid, hand.arrays.f, options)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path}: expected a mesh pyramid, found one whose parts do not fit ({error}); {remedy}") from error
    if not fits:
        raise InputError(f"{path}: expected the mesh pyramid of {hand.name}, found that of another mesh (other faces or sizes); "
                         f"{remedy}")
    return pyramid


def _fits(pyramid: Pyramid, faces: np.ndarray, options: PyramidOptions) -> bool:
    """Whether faces, sizes and ids are those of a pyramid on `faces`."""
    count, fits = int(faces.max()) + 1, np.array_equal(pyramid.faces[0], faces)
    for level, kept in enumerate(pyramid.kept):
        coarse = pyramid.faces[level + 1]
        column, weight, table = pyramid.columns[level], pyramid.weights[level], pyramid.spirals[level]
        shapes = (coarse.shape[1:] == (3,), column.shape == weight.shape == (count, 3), kept.ndim == 1,
                  table.shape == (count, options.seq_length))
        integers = all(array.dtype == np.int64 for array in (coarse, column, kept, table))
        fits = fits and all(shapes) and integers and weight.dtype == np.float32 and bool(np.isfinite(weight).all())
        for ids, below in ((coarse, len(kept)), (column, len(kept)), (kept, count), (table, count)):
            fits = fits and bool(((ids >= 0) & (ids < below)).all())
        count = len(kept)
    return bool(fits)
