"""The published networks of src/cmr.py: SG, PG and G of the authors' release, and the DexYCB variant of the ECCV 2022 release.

Names and sizes: specs/cmr_boukhayma_metro.md 2.3, 2.4, specs/idhandmesh.md 7.1. A file is a bare state dict (May 2021) or a dict
with model_state_dict. What only the release says: targets and maps read as published, and in the DexYCB variant meshes about
MANO's translation point. The weights fit the published mesh pyramid, which follows from MANO's own hand.
"""
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from src.cmr import LEAST_SPIRAL, VERTS, Options
from src.register import RegisterOptions

Tensors = Mapping[str, Tensor]
MESH = ("attention.", "de_layers.", "heads.", "uvm_head.")
# Prefixes of names that tell the networks from each other, then those that they lack.
HAS = {"cmr_sg": (*MESH, "mask_delayer."), "cmr_pg": (*MESH, "uv_prior_delayer."), "cmr_g": ("backbone_mesh.", "de_layers.")}
LAST_HEAD = "uvm_head.conv.weight"
ROWS = {"cmr_sg": {}, "cmr_pg": {LAST_HEAD: 22}, "cmr_g": {}}  # the silhouette is the 22nd map
_UNUSED = {r"backbone2\.fc\.(weight|bias)": "the second stage's classifier: stored, never used"}
LEFT_OUT = {"sg": _UNUSED, "pg": _UNUSED, "g": {}}
RELEASE = "the authors' release (HandMesh)"

# Decoders and heads of the stages, first to last, by variant.
DRAWN = {"sg": ("mask", "uv", "uvm"), "pg": ("uv_prior", "uv", "uvm"), "g": ("uv", "uv2")}
TRUNKS = {"backbone": 0, "backbone_mesh": 1, "backbone1": 0, "backbone2": 1, "backbone3": 2}
ATTENTION = {"query_conv": "query", "key_conv": "key", "value_conv": "value"}


def options(theirs: Tensors, variant: str, **release: Any) -> Options:
    """Depth, attention, silhouette, length of the spirals and channels are read off; the rest is as released."""
    last = theirs.get("uv_head2.conv.weight" if variant == "g" else LAST_HEAD)
    return Options(variant=variant, backbone=_depth(theirs), attention=any(name.startswith("attention.") for name in theirs),
                   silhouette=variant == "sg" or last is None or last.shape[:1] != (21,), channels=_channels(theirs),
                   seq_length=_length(theirs), target="published", decoder="argmax", head_bias=None,
                   registration=RegisterOptions(solver="faithful"), **release)


def name(theirs: str, variant: str) -> str | None:
    """Our name of a published tensor: backbone2.layer1.* -> stages.1.trunk.layer1.*, uvm_delayer.0.* -> stages.2.decoder.0.*,
    de_layers.0.* -> decoder.start.*, de_layers.1.* -> decoder.blocks.0.*; None for one that has no place."""
    part, _, rest = theirs.partition(".")
    if part in TRUNKS:
        stage = TRUNKS[part]
        if rest.startswith("fc.") and stage != len(DRAWN[variant]) - 1:
            return None
        return f"stages.{stage}.{rest if rest.startswith('reduce.') else f'trunk.{rest}'}"
    if part == "attention":
        layer, _, kind = rest.partition(".")
        return f"attention.{ATTENTION[layer]}.{kind}" if layer in ATTENTION else f"attention.{rest}"
    if part == "heads":
        return f"decoder.heads.{rest}"
    if part == "de_layers":
        number, _, rest = rest.partition(".")
        if not number.isdecimal():
            return None
        return f"decoder.start.{rest}" if number == "0" else f"decoder.blocks.{int(number) - 1}.{rest}"
    if found := re.fullmatch(r"(mask|uv_prior|uv|uvm)_(delayer|head)(2?)", part):
        drawn = found[1] + found[3]
        if drawn in DRAWN[variant]:
            kept = f"decoder.{rest}" if found[2] == "delayer" else f"head.{rest.removeprefix('conv.')}"
            return f"stages.{DRAWN[variant].index(drawn)}.{kept}"
    return None


def _depth(theirs: Tensors) -> str:
    first = "backbone" if "backbone.conv1.weight" in theirs else "backbone1"
    if f"{first}.layer1.0.conv3.weight" in theirs:
        return "resnet50"
    return "resnet34" if f"{first}.layer3.5.conv1.weight" in theirs else "resnet18"


def _channels(theirs: Tensors) -> tuple[int, ...]:
    """Channels of the mesh decoder's levels, finest first; the published ones where a layer is odd, which is told later."""
    rows = (theirs.get(f"de_layers.{level}.conv1.layer.weight", Tensor()).shape[:1] for level in (4, 3, 2, 1))
    found = [count for first in rows for count in first]
    usual = Options.model_fields["channels"].default
    return tuple(found) if len(found) == len(usual) and all(count and count % 4 == 0 for count in found) else usual


def _length(theirs: Tensors) -> int:
    """Vertices of a spiral: inputs of the coarsest mesh's head by its channels; the published 27 where it is odd."""
    head = theirs.get("heads.0.layer.weight")
    length, rest = (27, 0) if head is None or not head.ndim else divmod(head.shape[-1], _channels(theirs)[-1])
    return length if rest == 0 and LEAST_SPIRAL <= length <= VERTS else 27
