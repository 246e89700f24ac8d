"""The two published networks of src/boukhayma.py: the release of 2019, and the DexYCB comparison of the ECCV 2022 release.

Names and sizes: specs/cmr_boukhayma_metro.md 2.8, specs/idhandmesh.md 7.2 and 10. Both stems are in both files and in ours. The
first was trained with either stem, so its file does not say which is used (nor how wide the maps are): `method.stem` chooses.
"""
from collections.abc import Mapping

from torch import Tensor

from src.boukhayma import Options

FREE = ("stem", "heatmap_sigma")  # of the options, what the first file leaves to its user
MANO_ARRAYS = "MANO's own arrays: the hand comes from the user's hand file"
LEFT_OUT = {r"mano_pca_layer\..*|th_selected_comps|th_hands_mean": MANO_ARRAYS,
            "mean": "the constant of src/boukhayma.py, added to camera numbers that this network discards"}
HAS = ("conv1.", "conv11.", "layer4.", "fc.")
LAYER = "mano_pca_layer."  # only the second has it


def release_options(theirs: Mapping[str, Tensor]) -> Options:
    """Depth is read off."""
    return Options(backbone=_depth(theirs))


def dexycb_options(theirs: Mapping[str, Tensor]) -> Options:
    """Depth is read off; the rest is as idhandmesh 7.2 says."""
    return Options(backbone=_depth(theirs), mano="layer", weak_perspective=False, normalise="half")


def name(theirs: str) -> str | None:
    """Our name of a published tensor; None for one that is left out."""
    first = theirs.partition(".")[0]
    known = {"conv11": "heatmap_stem", "fc": "head"}
    if first in known:
        return theirs.replace(first, known[first], 1)
    return f"backbone.{theirs}" if first in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4") else None


def _depth(theirs: Mapping[str, Tensor]) -> str:
    if "layer1.0.conv3.weight" in theirs:
        return "resnet50"
    return "resnet34" if "layer3.5.conv1.weight" in theirs else "resnet18"
