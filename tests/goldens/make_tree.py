"""Write the formula-made DexYCB tree that golden_crop.npz and golden_dataset.npz were computed on.

    python make_tree.py FOLDER

One subject (07) with 100 sequences; sequence 0 is a right hand and sequence 1 a left hand, 2 frames x 8 cameras each, the
other 98 are empty (num_frames 0). Camera 7, frame 1 carries no annotation (-1), so s1/val gives 15 right-hand records.
"""
import os
import sys

import numpy as np
import yaml
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fill import uniform
from toy_mano import toy_mano

SERIALS = ["836212060125", "839512060362", "840412060917", "841412060263",
           "932122060857", "932122060861", "932122061900", "932122062010"]
TIPS = [745, 317, 444, 556, 673]
ORDER = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]


def exp(a):
    """Axis-angle (..., 3) to rotation matrix (..., 3, 3)."""
    t = np.linalg.norm(a, axis=-1, keepdims=True) + 1e-300
    x, y, z = np.moveaxis(a / t, -1, 0)
    o = np.zeros_like(x)
    k = np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(a.shape[:-1] + (3, 3))
    t = t[..., None]
    return np.eye(3) + np.sin(t) * k + (1 - np.cos(t)) * (k @ k)


def joints21(mano, pose_m, betas):
    """Chain joints + fingertips (21, 3), metres, of one DexYCB pose_m (51,) = rotation 3, PCA 45, translation 3."""
    theta = np.concatenate([pose_m[:3], mano["hands_mean"] + pose_m[3:48] @ mano["hands_components"]]).reshape(16, 3)
    rot = exp(theta.astype(np.float64))
    shaped = mano["v_template"] + mano["shapedirs"] @ betas
    rest = mano["J_regressor"] @ shaped
    posed = shaped + mano["posedirs"] @ (rot[1:] - np.eye(3)).reshape(-1)
    parents = [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
    chain = []
    for i, p in enumerate(parents):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = rot[i], rest[i] - (rest[p] if p >= 0 else 0)
        chain.append(local if p < 0 else chain[p] @ local)
    chain = np.stack(chain)
    joints = chain[:, :3, 3].copy()
    chain[:, :3, 3] -= np.einsum("jab,jb->ja", chain[:, :3, :3], rest)
    blend = np.einsum("vj,jab->vab", mano["weights"], chain)
    verts = np.einsum("vab,vb->va", blend[:, :3, :3], posed) + blend[:, :3, 3]
    return np.concatenate([joints, verts[TIPS]])[ORDER] + pose_m[48:]


def main(folder):
    def at(*parts):
        path = os.path.join(folder, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def dump(value, *parts):
        with open(at(*parts), "w") as file:
            yaml.safe_dump(value, file)

    mano = toy_mano(0)
    for c, serial in enumerate(SERIALS):
        dump({"color": {"fx": 613.0 + c, "fy": 612.0, "ppx": 313.0, "ppy": 245.0 + c}, "depth": {}},
             "calibration/intrinsics", f"{serial}_640x480.yml")
    dump({"extrinsics": {s: [1.0, 0, 0, 0.1 * c, 0, 1.0, 0, 0, 0, 0, 1.0, 0] for c, s in enumerate(SERIALS)}},
         "calibration/extrinsics_toy/extrinsics.yml")
    betas = {i: uniform(f"dexycb.betas.{i}", (10,), -1, 1) for i in range(1, 11)}
    for i, b in betas.items():
        dump({"betas": [float(x) for x in b]}, f"calibration/mano_20200101_000000_subject-{i:02d}_right/mano.yml")
    for q in range(100):
        seq = f"20200928-subject-07/20200928_{q:06d}"
        dump({"num_frames": 2 if q < 2 else 0, "ycb_ids": [1], "ycb_grasp_ind": 0, "mano_sides": ["left" if q == 1 else "right"],
              "mano_calib": ["20200101_000000_subject-07_right"], "extrinsics": "toy"}, seq, "meta.yml")
        if q > 1:
            continue
        np.savez(at(seq, "pose.npz"), pose_m=uniform("dexycb.world_pose", (2, 1, 51), -0.3, 0.3))
        for c, serial in enumerate(SERIALS):
            for f in range(2):
                pose = uniform(f"dexycb.pose.{c}.{f}", (1, 51), -0.3, 0.3)
                pose[0, 48:51] = [0.05 * (c - 4), 0.02 * f, 0.9 + 0.05 * c]
                joints = joints21(mano, pose[0], betas[7]).astype(np.float32)
                K = np.array([[613.0 + c, 0, 313.0], [0, 612.0, 245.0 + c], [0, 0, 1]])
                uv = joints @ K.T
                uv = (uv[:, :2] / uv[:, 2:]).astype(np.float32)
                if c == 7 and f == 1:
                    joints, uv = -np.ones_like(joints), -np.ones_like(uv)
                np.savez(at(seq, serial, f"labels_{f:06d}.npz"), pose_m=pose, joint_3d=joints[None], joint_2d=uv[None])
                image = Image.fromarray(uniform(f"dexycb.image.{c}.{f}", (480, 640, 3), 0, 256).astype(np.uint8))
                image.save(at(seq, serial, f"color_{f:06d}.jpg"))


if __name__ == "__main__":
    main(sys.argv[1])
