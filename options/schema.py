"""The typed form of an option file. Each method, dataset and command owns its own class; this file joins them.

`method: {name: foo}` is checked by `src/foo.py: Options`, `dataset: {name: bar}` by `datasets/bar.py: Options`,
`synth: {name: baz}` by `datasets/synthetic/baz.py: Options`: the name is the module, there is no register.
"""
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from datasets.augment import AugmentOptions, CropOptions
from src.calibrate import CalibrateOptions
from src.demo import DemoOptions
from src.engine import TrainOptions
from src.fit import FitOptions
from src.predict import TestOptions
from src.refine import RefineOptions
from src.summary import ReportOptions
from utils.strict import Strict, named


class Options(Strict):
    """One experiment. A command reads its own sections only, so an option file may leave out the others."""

    name: str = Field("", description="the run's folder is out/<name>")
    out: str = Field("out", description="folder of all runs")
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 = torch's own choice")
    hand: str = Field("template/free_hand_right.npz", description="right hand: .npz of this project or MANO_RIGHT.pkl")
    hand_left: str | None = Field(None, description="left hand, for labels of left hands; null = the right file's sibling")
    method: Annotated[SerializeAsAny[Strict] | None, named("src")] = None
    dataset: Annotated[SerializeAsAny[Strict] | None, named("datasets")] = None
    synth: Annotated[SerializeAsAny[Strict] | None, named("datasets.synthetic")] = None
    crop: CropOptions = CropOptions()
    augment: AugmentOptions = AugmentOptions()
    loss: dict[str, float] = Field(default_factory=dict, description="weight of each of the method's loss terms")
    train: TrainOptions = TrainOptions()
    test: TestOptions = TestOptions()
    calibrate: CalibrateOptions = CalibrateOptions()
    refine: RefineOptions = RefineOptions()
    fit: FitOptions = FitOptions()
    demo: DemoOptions = DemoOptions()
    report: ReportOptions = ReportOptions()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out) / self.name
