"""Shapes in the signatures of the geometry are checked at every call while tests run (jaxtyping, beartype); free otherwise."""
import torch
from jaxtyping import install_import_hook

GEOMETRY = ["utils.rotation", "utils.camera", "utils.hand", "utils.metrics", "utils.bootstrap", "utils.render",
            "utils.kinematics", "utils.depth", "src.losses", "datasets.augment"]
install_import_hook(GEOMETRY, "beartype.beartype")
torch.set_num_threads(1)  # one test process per core
