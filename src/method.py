"""What a method is: a torch module with named outputs, per-sample losses, and a decoder to the common Prediction.

`src/foo.py` defines `class Options(Strict)` (with `name: Literal["foo"]`) and `build(options, hand) -> Method`;
`method: {name: foo}` in an option file *is* the module name. Nothing else is touched.
"""
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from utils.batch import Batch, JointSet, Prediction


class Method(nn.Module, ABC):
    """Base of every method.

    `needs` names the Batch fields that `forward` and `losses` read (besides image, K and index); `compares` those that
    validation compares with what `decode` returns.
    `loss_names` are the keys of `losses`, and the only keys that the option file's `loss:` weights may have.
    `joint_set`: what the 21 joints of an answer are; run.py sets that of the dataset.
    `sees_keypoints`: it is told 2D joints (`batch.joints_uv`, crop pixels, with `uv_confidence`): labels while it trains and is
    validated, and in `test` and `demo` predicted ones, which src/predict.py and src/demo_hand.py put in their place.
    `misfit`: why published weights cannot be right here although they fit, if so: they were trained on another mesh.
    `training_only` names the options that are no part of the trained network; a checkpoint must agree in all others.
    """

    needs: frozenset[str] = frozenset()
    compares: frozenset[str] = frozenset({"joints", "verts", "root"})
    loss_names: tuple[str, ...] = ()
    training_only: frozenset[str] = frozenset()
    sees_keypoints: bool = False
    misfit: str | None = None
    joint_set: JointSet = JointSet()

    @abstractmethod
    def forward(self, batch: Batch) -> Any:
        """The method's own named tuple."""

    @abstractmethod
    def losses(self, out: Any, batch: Batch) -> dict[str, Tensor]:
        """Unweighted per-sample terms: name -> (b,). The engine weighs, averages and logs them.

        A term that lives on pairs of samples is spread over the rows so that its mean over the batch is the term.
        """

    @abstractmethod
    def decode(self, out: Any, batch: Batch) -> Prediction:
        """Metric, wrist-relative answer in camera axes."""

    def metrics(self, out: Any, batch: Batch) -> dict[str, Tensor]:
        """Further scalars worth watching, e.g. ranking accuracy (logged, never optimised)."""
        return {}

    def start_weights(self) -> None:
        """Load what a fresh training starts from (published backbones).

        The engine calls it once, before step 0 of a run without a checkpoint: evaluating and resuming fetch nothing.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser; parameters left out are frozen."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]
