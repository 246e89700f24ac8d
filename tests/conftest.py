"""Shapes in the signatures of the geometry are checked at every call while tests run (jaxtyping, beartype); free otherwise."""
import fcntl
import os

import pytest
import torch
from jaxtyping import install_import_hook

GEOMETRY = ["utils.rotation", "utils.camera", "utils.hand", "utils.metrics", "utils.bootstrap", "utils.render",
            "utils.kinematics", "utils.depth", "src.losses", "datasets.augment"]
install_import_hook(GEOMETRY, "beartype.beartype")
torch.set_num_threads(1)  # one test process per core


@pytest.fixture
def one_launcher(tmp_path_factory):
    """Held by tests that start torchrun: two launchers that look for a free port at the same moment can find the same one."""
    base = tmp_path_factory.getbasetemp()
    with open((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "launcher.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
