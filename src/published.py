"""What is known of published networks: how to tell them, their options, our names for their tensors.

One entry of TABLE per network that `run.py convert` reads. Where no `release` is named it is of the ECCV 2022 identity-aware one
(specs/idhandmesh.md sections 3, 6.1, 8.3, 10), whose files are a dict with `model_state_dict`, or a bare state dict.
"""
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from src import boukhayma, cmr, idhand, pose2d, published_boukhayma, published_cmr
from utils.strict import Strict

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Published:
    """One published network.

    method: the module it becomes a checkpoint of · has, lacks: prefixes of names that tell it from the others · options: its
    tensors -> the options that they, and the release, say · networks: options -> everything that has weights, by our names ·
    ours: a published name -> our name, or None · left_out: pattern of a published name -> why it is not in ours ·
    free: options that the file leaves to its user · rows: tensor's name -> its first size, which tells this network from one with
    the same names.
    """

    method: str
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    options: Callable[[Tensors], Strict]
    networks: Callable[[Strict], dict[str, nn.Module]]
    ours: Callable[[str], str | None]
    left_out: dict[str, str] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    release: str = "the ECCV 2022 release"
    rows: dict[str, int] = field(default_factory=dict)

    def is_of(self, theirs: Tensors) -> bool:
        """Whether tensors of these names look like this network's."""
        if any(name not in theirs or theirs[name].shape[:1] != (count,) for name, count in self.rows.items()):
            return False
        return all(_any(theirs, prefix) for prefix in self.has) and not any(_any(theirs, prefix) for prefix in self.lacks)

    def why_left_out(self, name: str) -> str | None:
        """The reason why a published tensor is not in ours; None for one that nobody knows."""
        return next((why for pattern, why in self.left_out.items() if re.fullmatch(pattern, name)), None)


def _any(names: Tensors, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _layers(prefix: str, theirs: Tensors) -> list[int]:
    return sorted({int(m[1]) for name in theirs if (m := re.fullmatch(re.escape(prefix) + r"(\d+)\.weight", name))})


# --- the three arms of idhand ---

MANO_ARRAYS = "MANO's own arrays: the hand comes from the user's hand file"
IDHAND_LEFT_OUT = {r"mano_layer\..*": MANO_ARRAYS, r"th_selected_comps|th_hands_mean": MANO_ARRAYS,
                   r"j_regressor": "never read in any forward"}
IDHAND_NAMES = {"feature_extractor.": "backbone.", "pose_6d_extractor.": "pose_heads.", "shape_extractor.": "shape_head.",
                "conf_branch.": "conf_branch."}
# The release's own settings, which its files do not store.
BASELINE = {"shape": "predicted", "start_pose": "degenerate", "pose_update": "add"}
GIVEN = {"shape": "given", "start_pose": "identity", "pose_update": "multiply"}


def _idhand_options(arm: dict[str, str], theirs: Tensors) -> idhand.Options:
    """Depth, iterations and confidence layers are read off; no sigmoid on the confidence is assumed, as released."""
    linears = _layers("conf_branch.", theirs)
    conf = {len(hidden) + 1: kind for kind, hidden in idhand.CONF_HIDDEN.items()}.get(len(linears), 0)
    if "feature_extractor.layer1.0.conv3.weight" in theirs:
        depth = "resnet50"
    else:
        depth = "resnet34" if "feature_extractor.layer3.5.conv1.weight" in theirs else "resnet18"
    heads = {name.split(".")[1] for name in theirs if name.startswith("pose_6d_extractor.")}
    return idhand.Options(**arm, backbone=depth, feature="logits1000", iterations=len(heads), conf_branch=conf,
                          conf_drop_out=linears == [1], train_only_conf=bool(conf))


def _idhand_name(name: str) -> str | None:
    """Ours counts linear layers; theirs counts ReLU and drop-out too (heads: 0, 3, 6, 9; branch: 0, 2, 4)."""
    for prefix, ours in IDHAND_NAMES.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            if prefix == "feature_extractor.":
                return ours + rest
            *head, layer, kind = rest.split(".")
            step = 2 if prefix == "conf_branch." else 3
            return ours + ".".join((*head, str(int(layer) // step) if layer.isdigit() else layer, kind))
    return None


def _idhand(arm: dict[str, str], has: tuple[str, ...], lacks: tuple[str, ...]) -> Published:
    return Published("idhand", ("pose_6d_extractor.", *has), lacks, lambda theirs: _idhand_options(arm, theirs), idhand.networks,
                     _idhand_name, IDHAND_LEFT_OUT)


# --- the 2D detector ---

POSE2D_STAGES = ("uv_prior", "uv", "uvm")  # decoders and heads of stages one to three; uvm makes what they call uv_pred


def _pose2d_options(theirs: Tensors) -> pose2d.Options:
    """Depth is read off; targets and decoding are as released."""
    if "backbone1.layer1.0.conv3.weight" in theirs:
        depth = "resnet50"
    else:
        depth = "resnet34" if "backbone1.layer3.5.conv1.weight" in theirs else "resnet18"
    return pose2d.Options(backbone=depth, stages=3, target="published", decoder="argmax", head_bias=None)


def _pose2d_name(name: str) -> str | None:
    """backbone2.layer1.* -> stages.1.trunk.layer1.*, uvm_delayer.* -> stages.2.decoder.*, uv_head.conv.* -> stages.1.head.*"""
    if found := re.fullmatch(r"backbone([123])\.(.*)", name):
        stage, rest = int(found[1]) - 1, found[2]
        if rest.startswith("fc."):
            return None
        return f"stages.{stage}.{rest if rest.startswith('reduce.') else f'trunk.{rest}'}"
    if found := re.fullmatch(r"(uv_prior|uv|uvm)_(delayer\.|head\.conv\.)(.*)", name):
        return f"stages.{POSE2D_STAGES.index(found[1])}.{'head.' if found[2] == 'head.conv.' else 'decoder.'}{found[3]}"
    return None


# --- CMR ---

def _cmr(has: str, variant: str, rows: dict[str, int] | None = None, release: str = published_cmr.RELEASE,
         **options: str) -> Published:
    return Published("cmr", published_cmr.HAS[has], (), lambda theirs: published_cmr.options(theirs, variant, **options),
                     cmr.networks, lambda name: published_cmr.name(name, variant), published_cmr.LEFT_OUT[variant],
                     release=release, rows=published_cmr.ROWS[has] if rows is None else rows)


TABLE = {
    "idhand_baseline": _idhand(BASELINE, ("shape_extractor.",), ("conf_branch.",)),
    "idhand_given": _idhand(GIVEN, (), ("shape_extractor.", "conf_branch.")),
    "idhand_conf": _idhand(BASELINE, ("shape_extractor.", "conf_branch."), ()),
    "pose2d": Published("pose2d", ("uv_prior_delayer.", "uvm_delayer."), ("de_layers.",), _pose2d_options, pose2d.networks,
                        _pose2d_name, {r"backbone[123]\.fc\..*": "computed and never used"}),
    "boukhayma": Published("boukhayma", published_boukhayma.HAS, (published_boukhayma.LAYER,),
                           published_boukhayma.release_options, boukhayma.networks, published_boukhayma.name,
                           free=published_boukhayma.FREE, release="the authors' release"),
    "boukhayma_dexycb": Published("boukhayma", (*published_boukhayma.HAS, published_boukhayma.LAYER), (),
                                  published_boukhayma.dexycb_options, boukhayma.networks, published_boukhayma.name,
                                  published_boukhayma.LEFT_OUT),
    "cmr_sg": _cmr("cmr_sg", "sg"),
    "cmr_pg": _cmr("cmr_pg", "pg"),
    "cmr_g": _cmr("cmr_g", "g"),
    # Seed: Kong et al. centre the DexYCB variant on MANO's translation point, where CMR has the wrist.
    "cmr_pg_dexycb": _cmr("cmr_pg", "pg", rows={published_cmr.LAST_HEAD: 21}, release="the ECCV 2022 release", origin="mano"),
}
