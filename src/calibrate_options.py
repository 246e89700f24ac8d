"""Options of `calibrate` (`calibrate:` of an option file): whose images, by which estimator, and what counts as enough.

Estimators, by `method`: means of predicted shapes (`random`, `top`, `weighted`, `all`), the Gaussian posterior of those
predictions (`posterior`), and fits to 2D keypoints or depth (`joint`, `views`, `depth`). `measured` conditions whichever it was
on a ruler.
"""
from typing import Annotated, Literal

from pydantic import Field

from src.joint_fit_options import FitOptions
from utils.strict import Strict

Count = Annotated[int, Field(ge=1)]
MethodName = Literal["random", "top", "weighted", "all", "posterior", "joint", "views", "depth"]


class CalibrateOptions(Strict):
    """Which images calibrate whom, and how."""

    input: str = Field("", description="photographs, a folder or a video of one person's hand, in place of predictions")
    checkpoint: str | None = Field(None, description="checkpoint that looks at `input`; null = the run's last")
    boxes: str | None = Field(None, description="input: boxes [left, top, width, height] of hands, json; null = whole pictures")
    K: str | None = Field(None, description="input: camera matrix, .json or .npy, or a folder of them; null = from fov")
    fov: float | None = Field(None, gt=0, lt=180, description="input: degrees across the longer side; null = EXIF, else nominal")
    side: Literal["right", "left"] = Field("right", description="input: which hand it is, where the box does not say")
    subject: int = Field(1, ge=0, description="input or ruler: number of the person, and name of the identity file")
    keypoints: str | None = Field(None, description="2D joints for joint, views, depth: predictions file of a 2D network on the "
                                                    "frames (input: folder of a pose2d run); null = in predictions itself")
    validation_keypoints: str | None = Field(None, description="2D joints of the frames of `validation`; null = in that itself")
    measured: str | None = Field(None, description="ruler, e.g. wrist_to_middle_tip:190mm,palm_width:84mm; needs no images")
    measured_sd_mm: float = Field(2.0, gt=0, description="ruler: standard deviation of a length where none is stated (84mm+-1mm)")
    depth_root: str = Field("", description="depth: folder that the frames' names start from, with the aligned depth pictures")
    fit: FitOptions = FitOptions()
    predictions: str = Field("", description="predictions file of the images that calibrate (written by `test`)")
    scored: str | None = Field(None, description="predictions file of the frames to be scored; may share no frame with the above")
    allow_scored_frames: bool = Field(False, description="calibrate on scored frames all the same, as the original did")
    out: str = Field("", description="folder of the identity files; empty = out/<name>/identities")
    sequences: list[str] = Field(default_factory=list, description="only frames in these folders (globs); empty = all")
    sides: Literal["both", "right", "left"] = Field("both", description="frames of which hands (left ones count mirrored)")
    subjects: list[int] = Field(default_factory=list, description="only these people; empty = all in the file")
    method: MethodName = Field("random", description="estimator of the shape: see src/calibrate_options.py")
    n: Count = Field(20, description="images per person (weighted and all use every image)")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the draws of `random`; 0 is the original's")
    draws: Count = Field(10, description="draws averaged in the curve; the identity file holds draw 0")
    write_draws: bool = Field(False, description="write the identity files of every draw to <out>/draws/<draw>/ "
                                                 "(random, posterior)")
    temperature: float = Field(1.0, gt=0, description="weighted: weights are softmax(confidence / temperature)")
    validation: str | None = Field(None, description="posterior: predictions of held-out people with known shapes, which the "
                                                     "likelihood is fitted to")
    likelihood: str | None = Field(None, description="posterior: likelihood.json of an earlier calibration, for validation")
    enough_mm: float = Field(1.0, gt=0, description="enough images: predicted standard deviation of the mesh below this")
    curve_n: list[Count] = Field([1, 2, 3, 4, 5, 10, 20, 50, 100, 200], min_length=1, description="n of the curve")
    curve_methods: list[MethodName] = Field(default_factory=list, description="estimators of the curve; empty = all that need no "
                                                                              "fit: random, top, weighted, posterior, all")
    scored_frames: Count = Field(2000, description="frames of `scored`, evenly spread, that are posed to measure what was gained")
