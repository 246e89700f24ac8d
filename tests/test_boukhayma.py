"""boukhayma: both published networks' stored outputs through `convert`, and what must hold whatever the weights are."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from idhand_cases import GOLDENS, fill, given, plain_batch, toy_hand, uniform
from pydantic import ValidationError

from options.load import load as load_options
from src.boukhayma import PIXELS, SCALE_M, Options, Out, build
from src.checkpoint import load, require_same_method
from src.convert import convert, options_of
from utils.batch import JointSet
from utils.camera import project
from utils.errors import InputError
from utils.rotation import matrix_from_axis_angle, rows6d_from_matrix

CONSTANT = ("mean", "th_", "mano_pca_layer.")  # what the second file has beside the first
TRIPLES = ((0, 5, 6), (7, 8, 9), (10, 11, 12), (17, 18, 19), (20, 13, 14), (15, 16, 1), (2, 3, 4))  # of maps, by the spec
HAND = toy_hand()


@pytest.fixture(scope="module")
def published():
    """The state dict of the DexYCB comparison, weights by formula, MANO's arrays (which must not be read) as NaN."""
    manifest = json.loads((GOLDENS / "manifest_boukhayma.json").read_text())
    return {name: torch.full(shape, torch.nan) if name.startswith(CONSTANT) else torch.from_numpy(fill(name, shape))
            for name, shape in manifest.items()}


@pytest.fixture(scope="module")
def release(published):
    """The first release's: less the constants, the last layer scaled down, the names as a parallel wrapper leaves them."""
    return {f"module.{name}": 0.001 * value if name.startswith("fc.") else value for name, value in published.items()
            if not name.startswith(CONSTANT)}


@pytest.fixture(scope="module")
def converted(published, release, tmp_path_factory):
    """name of the conversion -> our checkpoint of it."""
    folder, found = tmp_path_factory.mktemp("boukhayma"), {}
    for what, state in (("boukhayma", release), ("boukhayma_dexycb", {"epoch": 15, "model_state_dict": published})):
        torch.save(state, folder / "theirs.pt")
        convert(what, folder / "theirs.pt", folder / "ours.pt")
        found[what] = load(folder / "ours.pt")
    return found


def method_of(found, **changes):
    method = build(Options(**found["method_options"], **changes), HAND)
    method.load_state_dict(found["model"], strict=True)
    return method.eval()


def golden(name, key):
    with np.load(GOLDENS / f"{name}.npz") as stored:
        return stored[key]


def off(ours, theirs):
    """Largest difference, relative to the stored array's largest value."""
    return float(np.abs(ours.double().numpy() - theirs).max() / np.abs(theirs).max())


def seventh(points):
    """The stored points of 799: all joints, every seventh vertex."""
    return points[:, [*range(21), *range(21, 799, 7)]]


def small(seed=0, **changes):
    """A network that a test can train."""
    torch.manual_seed(seed)
    return build(Options(**{"backbone": "resnet18", "width": 0.125, "pool": "global", **changes}), toy_hand())


def numbers(count=3, seed=0, **parts):
    """Numbers of the network (b,22), small random ones where no part is given: camera, turn, pca, shape."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"camera": 3, "turn": 3, "pca": 6, "shape": 10}
    found = {name: 0.5 * torch.randn(count, size, generator=generator) for name, size in sizes.items()}
    return torch.cat([parts.get(name, value) for name, value in found.items()], 1)


def true_batch(method, pixels=64, seed=0):
    """Noise pictures of what `method` itself says of random numbers, placed in the camera: an answer that it can learn."""
    with torch.no_grad():
        out = method.posed(numbers(4, seed))
        root = torch.tensor([[0.02, -0.01, 0.7]]).repeat(4, 1)
        move = (root - out.chain[:, 0])[:, None]
        joints = HAND.joints(out.posed)
        generator = torch.Generator().manual_seed(seed)
        batch = plain_batch(torch.rand(4, 3, pixels, pixels, generator=generator), shape=out.shape, verts=out.verts + move,
                            rotations=out.rotations, root=root, joints=joints + move)
        return replace(batch, joints_uv=method.joints_uv(out, joints, pixels)), out


def test_file_of_an_old_torch(release, converted, tmp_path):
    """A file of torch before 0.4.1 has no batch counters: all 0, like the newer file's; one that lacks only some is refused."""
    old = {name: value for name, value in release.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "theirs.pt", _use_new_zipfile_serialization=False)
    convert("boukhayma", tmp_path / "theirs.pt", tmp_path / "ours.pt")
    found, newer = load(tmp_path / "ours.pt")["model"], converted["boukhayma"]["model"]
    assert found.keys() == newer.keys() and all(torch.equal(value, newer[name]) for name, value in found.items())
    torch.save(old | {"module.bn1.num_batches_tracked": torch.tensor(0)}, tmp_path / "theirs.pt")
    with pytest.raises(InputError, match="35 tensors of boukhayma are missing: backbone.layer1.0.bn1.num_batches_tracked, "):
        convert("boukhayma", tmp_path / "theirs.pt", tmp_path / "ours.pt")


@pytest.mark.parametrize("pixels", [256, 224])
@pytest.mark.parametrize("stem, key", [("heatmaps", "opt1"), ("image", "opt0")])
def test_golden_release(converted, stem, key, pixels):
    """Pooled feature, 22 numbers, 2D and 3D points of either stem through `convert` (joints and every 7th vertex; 1e-5)."""
    method = method_of(converted["boukhayma"], stem=stem)
    x = torch.from_numpy(uniform("input.image", (2, 24 if stem == "heatmaps" else 3, pixels, pixels), -1, 1))
    with torch.no_grad():
        feature = method.feature(x)
        found = {"feat": feature, "fc": method.head(feature)}
        found["x2d"], found["x3d"] = map(seventh, method.published(method.posed(found["fc"])))
    for name, value in found.items():
        assert off(value, golden("boukhayma", f"{key}_s0_{pixels}_{name}")) < 1e-5, name


@pytest.mark.parametrize("case", ["mano.out", "mano.zero_rot_out"])
def test_golden_hand(case):
    """The hand layer alone on stored rotations, pose coefficients and shapes, and on zeros."""
    parts = [torch.from_numpy(golden("boukhayma", f"mano.{name}")) for name in ("rot", "theta", "beta")]
    x = torch.cat([torch.zeros(3, 3), *parts], 1)
    method = small()
    points = method.published(method.posed(x if case == "mano.out" else torch.zeros(1, 22)))[1]
    assert off(seventh(points), golden("boukhayma", case)) < 2e-6


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 5e-4)], ids=["float64", "float32"])
def test_golden_dexycb(converted, dtype, tolerance):
    """Mesh (every 7th vertex), joints, 6D pose and shape of the comparison's network; its angles are hundreds of radians, and
    the original's exp is off by 1e-8."""
    method = method_of(converted["boukhayma_dexycb"]).to(dtype)
    with torch.no_grad():
        batch = plain_batch((given("image", 2, 3, 256, 256, dtype=dtype) + 1) / 2)
        out = method(batch)
        answer = method.decode(out, batch)
    joints = method.hand.joints(out.posed)
    found = {"mesh_pred.0": out.verts[:, ::7] / SCALE_M, "keypoints_pred": joints / SCALE_M, "mano_shape_pred.0": out.shape,
             "mano_pose_pred.0": rows6d_from_matrix(out.rotations).flatten(1)}
    for name, value in found.items():
        assert off(value, golden("boukhayma_dexycb", f"f64.{name}")) < tolerance, name
    assert answer.root is None and answer.joints_uv is None
    torch.testing.assert_close(answer.joints, joints - joints[:, :1])


def test_every_weight_arrives(published, converted):
    """Both files: every number of the published network but MANO's arrays and the mean (NaN here), both stems among them."""
    theirs = sum(value.numel() for name, value in published.items() if not name.startswith(CONSTANT))
    for found in converted.values():
        assert found["method"] == "boukhayma" and found["hand"] is None
        assert sum(value.numel() for value in found["model"].values()) == theirs
        assert all(value.isfinite().all() for value in found["model"].values())
        assert torch.equal(found["model"]["heatmap_stem.weight"], published["conv11.weight"])
        assert torch.equal(found["model"]["backbone.layer3.5.bn2.running_var"], published["layer3.5.bn2.running_var"])


def test_the_release_leaves_the_stem_to_its_user(converted):
    """A converted release may be used with either stem; the comparison's, whose second stem was never trained, may not."""
    for stem in ("image", "heatmaps"):
        options = Options(stem=stem)
        require_same_method(converted["boukhayma"], "ours.pt", options.model_dump(mode="json"), frozenset())
    told = Options(**converted["boukhayma_dexycb"]["method_options"]).model_copy(update={"stem": "heatmaps"})
    with pytest.raises(InputError, match=r"method\.stem = 'image' there and 'heatmaps' now"):
        require_same_method(converted["boukhayma_dexycb"], "ours.pt", told.model_dump(mode="json"), frozenset())


@pytest.mark.parametrize("what, fault, line", [
    ("boukhayma", "dexycb", r"expected boukhayma, found boukhayma_dexycb \(it has conv1\.\*, .*mano_pca_layer\.\*\); run co"),
    ("boukhayma_dexycb", "release", r"expected boukhayma_dexycb, found boukhayma \(it has conv1.*no mano_pca_layer\.\*\); run"),
    ("boukhayma", "lacking", r"1 tensor of boukhayma is missing: backbone\.layer2\.0\.bn1\.weight; the file"),
    ("boukhayma", "size", r"head\.weight should be of size \(22, 512\), found \(32, 512\); the file"),
    ("boukhayma", "unknown", r"1 tensor belongs to no part of the network: camera\.weight; pass a checkpoint of the authors"),
])
def test_wrong_network(published, release, what, fault, line, tmp_path):
    """The other of the two, and files with a tensor too few, too many or too large: one line, nothing written."""
    state = dict(published if fault == "dexycb" else release)
    if fault == "lacking":
        del state["module.layer2.0.bn1.weight"]
    if fault == "size":
        state["module.fc.weight"] = torch.zeros(32, 512)
    if fault == "unknown":
        state["module.camera.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(InputError, match=line):
        convert(what, tmp_path / "theirs.pt", tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


@pytest.mark.parametrize("name, depth", [("layer1.0.bn1.weight", "resnet18"), ("layer3.5.conv1.weight", "resnet34"),
                                         ("layer1.0.conv3.weight", "resnet50")])
def test_depth_is_read_off_the_names(name, depth):
    """Blocks of layer 3, and their bottlenecks, tell the depth of either file."""
    assert all(options_of(what, {name: torch.zeros(1)}).backbone == depth for what in ("boukhayma", "boukhayma_dexycb"))


def test_published_turn():
    """The hand with its root joint at (pi,0,0), turned afterwards about MANO's origin, is hand(rotations, shape) moved by
    `shift` (to 1e-8 m: the toy's skinning weights, float32, add up to 1 that well)."""
    method = small().double()
    x = numbers().double()
    out = method.posed(x)
    fixed = out.rotations.clone()
    fixed[:, 0] = matrix_from_axis_angle(torch.tensor([torch.pi, 0, 0], dtype=torch.float64))
    turn = matrix_from_axis_angle(x[:, 3:6])
    posed = method.hand(fixed, x[:, 12:])
    expected = (turn[:, None] @ posed.verts[..., None])[..., 0]
    torch.testing.assert_close(method.published(out)[1][:, 21:], expected, rtol=0, atol=1e-8)
    ours = method.hand(out.rotations, out.shape)
    torch.testing.assert_close(ours.verts + out.shift[:, None], expected, rtol=0, atol=1e-8)
    assert torch.linalg.det(out.rotations).allclose(torch.ones((), dtype=torch.float64)) and out.shift.abs().max() > 1e-3


@pytest.mark.parametrize("mano", ["published", "layer"])
@pytest.mark.parametrize("joint_set", [JointSet(), JointSet("freihand", "regressed")], ids=["chain", "regressed"])
def test_answer_is_the_hand_of_its_numbers(mano, joint_set):
    """verts and joints are those of hand(rotations, shape) about their own wrist, joints as the dataset's are."""
    method = small(mano=mano)
    method.joint_set = joint_set
    answer = method.decode(method.posed(numbers()), plain_batch(torch.zeros(3, 3, 64, 64)))
    posed = method.hand(answer.rotations, answer.shape)
    joints = method.hand.joints(posed, *joint_set)
    torch.testing.assert_close(answer.joints, joints - joints[:, :1])
    torch.testing.assert_close(answer.verts, posed.verts - joints[:, :1])
    assert answer.joints[:, 0].abs().max() == 0


@pytest.mark.parametrize("pixels", [64, 256])
def test_root_of_the_weak_perspective(pixels):
    """A hand far off and near the axis, whose true camera is nearly a weak perspective: numbers made from the true K and the
    joints' middle give the true root (6 per mille), at any size of crop, and 2D joints near the exact projections."""
    method = small()
    root = torch.tensor([[0.03, -0.02, 4.0], [-0.05, 0.01, 8.0]])
    batch = plain_batch(torch.zeros(2, 3, pixels, pixels))
    free = numbers(2)
    first = method.posed(free)
    joints = method.hand.joints(first.posed)
    middle = joints.mean(1)
    place = middle - joints[:, 0] + root
    scale = batch.K[:, 0, 0] / place[:, 2] * (PIXELS / pixels)
    uv_256 = (project(place[:, None], batch.K)[:, 0] + 0.5) * (PIXELS / pixels) - 0.5
    shift = uv_256 - scale[:, None] * (middle + first.shift)[:, :2]
    camera = torch.cat((scale[:, None], shift), 1) - torch.tensor([545.0, 128, 128])
    answer = method.decode(method.posed(torch.cat((camera, free[:, 3:]), 1)), batch)
    assert ((answer.root - root).norm(dim=1) / root[:, 2]).max() < 0.006
    exact = project(answer.joints + root[:, None], batch.K)
    assert (answer.joints_uv - exact).norm(dim=-1).max() < 0.01 * pixels


def test_hopeless_scale_has_a_place():
    """A scale of zero, below it, or far too large puts the hand at the limits, not nowhere: 20 m, 20 m, 0.25 m."""
    method = small()
    camera = torch.tensor([[-545.0, 0, 0], [-2000, 0, 0], [1e6, 0, 0]])
    depth = method.decode(method.posed(numbers(camera=camera)), plain_batch(torch.zeros(3, 3, 64, 64))).root[:, 2]
    torch.testing.assert_close(depth, torch.tensor([20.0, 20, 0.25]), rtol=0.1, atol=0.1)


def test_maps_in_the_published_order():
    """The 21 maps behind the picture, three to a file, are the joints of the spec's triples, of height 1 at their pixels."""
    method = small(stem="heatmaps").eval()
    uv = torch.stack((torch.arange(21) * 2.0 + 8, torch.arange(21, 0, -1) * 2.0 + 6), -1)[None]
    uv[0, 13] = torch.tensor([-9.0, 20.0])
    batch = plain_batch(torch.rand(1, 3, 64, 64), joints_uv=uv)
    x = method.stem_input(batch)
    assert x.shape == (1, 24, 64, 64) and torch.equal(x[:, :3], batch.image)
    for place, joint in enumerate(joint for triple in TRIPLES for joint in triple):
        peak = x[0, 3 + place]
        if joint == 13:  # outside the crop
            assert peak.abs().max() == 0
            continue
        assert divmod(int(peak.argmax()), 64) == (int(uv[0, joint, 1]), int(uv[0, joint, 0])) and peak.max() == 1


def test_what_the_maps_are_told():
    """Peaks are as high as the confidence, rows without 2D joints are empty, and noise is for training alone."""
    method = small(stem="heatmaps", keypoint_noise=3.0).eval()
    uv, confidence = torch.full((2, 21, 2), 30.0), torch.linspace(0, 1, 21).repeat(2, 1)
    batch = plain_batch(torch.rand(2, 3, 64, 64), joints_uv=uv, uv_confidence=confidence, has_uv=torch.tensor([True, False]))
    maps = method.stem_input(batch)[:, 3:]
    torch.testing.assert_close(maps[0].amax((1, 2)), confidence[0, [j for triple in TRIPLES for j in triple]])
    assert (maps[1] == 0).all() and torch.equal(maps, method.stem_input(batch)[:, 3:])
    torch.manual_seed(0)
    assert not torch.equal(maps, method.train().stem_input(batch)[:, 3:])


def test_perfect_answer_costs_nothing():
    """The numbers that made the labels: mesh, edge and 2D terms are zero; priors are mean squares; unlabelled rows are zero."""
    method = small(terms=("joints_uv", "pose", "shape")).double()
    batch, out = true_batch(small(terms=("joints_uv", "pose", "shape")))
    x = numbers(4).double()
    batch = replace(batch.to(torch.float64), index=batch.index)
    terms = method.losses(method.posed(x), batch)
    assert tuple(terms) == method.loss_names == ("verts", "normal", "edge", "joints_uv", "pose", "shape")
    assert max(terms[name].max() for name in ("verts", "edge", "joints_uv")) < 1e-5
    torch.testing.assert_close(terms["pose"], x[:, 6:12].square().mean(1))
    torch.testing.assert_close(terms["shape"], x[:, 12:].square().mean(1))
    known = torch.tensor([True, False, True, False])
    other = replace(batch, has_verts=known, has_uv=known)
    moved = method.losses(method.posed(x + 0.1), other)
    for name in ("verts", "normal", "edge", "joints_uv"):
        assert (moved[name][~known] == 0).all() and (moved[name][known] > 0).all()


@pytest.mark.parametrize("changes", [
    {"stem": "heatmaps", "terms": ("joints_uv", "pose", "shape"), "camera_gain": 50.0},
    {"mano": "layer", "weak_perspective": False, "normalise": "half"},
], ids=["published, maps", "layer, picture"])
def test_learns(changes):
    """Trained on one batch of four, mesh (and 2D) errors fall to a third; the stem that is not in use stays as it was."""
    method = small(**changes)
    batch, _ = true_batch(small(mano=changes.get("mano", "published")))
    unused = method.backbone.conv1 if method.sees_keypoints else method.heatmap_stem
    before = unused.weight.clone()
    optimizer = torch.optim.Adam(method.parameter_groups()[0]["params"], 3e-3)
    weights = {"verts": 1.0, "normal": 0.1, "edge": 1.0, "joints_uv": 1.0, "pose": 1e-4, "shape": 1e-4}
    first = None
    for _ in range(60):
        terms = method.losses(method(batch), batch)
        loss = sum(weights[name] * term.mean() for name, term in terms.items())
        first = first or {name: term.mean().item() for name, term in terms.items()}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name in {"verts", "joints_uv"} & first.keys():
        assert terms[name].mean() < first[name] / 3, name
    assert torch.equal(unused.weight, before) and not unused.weight.requires_grad


@pytest.mark.parametrize("backbone, pca", [("resnet18", 6), ("resnet34", 45), ("resnet50", 1)])
def test_sizes(backbone, pca):
    """Blocks with and without bottleneck, any number of pose coefficients: the answer has its sizes and finite gradients."""
    method = small(backbone=backbone, pca=pca, stem="heatmaps", terms=("joints_uv",))
    batch = plain_batch(torch.rand(2, 3, 64, 64), joints_uv=torch.full((2, 21, 2), 30.0))
    out = method(batch)
    assert isinstance(out, Out) and out.pca.shape == (2, pca) and out.verts.shape == (2, 778, 3)
    answer = method.decode(out, batch)
    assert answer.root.shape == (2, 3) and answer.joints_uv.shape == (2, 21, 2) and answer.root.isfinite().all()
    (out.verts.square().sum() + answer.root.square().sum()).backward()
    grads = [p.grad for p in method.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in grads)


def test_the_corner_is_looked_at_alone(converted):
    """At 256 pixels the published pooling never sees the last map's last row and column, the global one does."""
    seen = []
    for pool in ("corner", "global"):
        method = small(pool=pool).eval()
        method.backbone.layer4.register_forward_hook(lambda _, __, x: torch.nn.functional.pad(x[:, :, :7, :7], (0, 1, 0, 1),
                                                                                            value=99.0))
        with torch.no_grad():
            seen.append(method.feature(torch.rand(1, 3, 256, 256)))
    assert seen[0].max() < 20 < seen[1].min()


@pytest.mark.parametrize("options, line", [
    ({"weights": "IMAGENET1K_V1", "width": 0.5}, "published weights need width 1"),
    ({"terms": ["joints_uv"], "weak_perspective": False}, "joints_uv trains the weak perspective; set weak_perspective: true"),
    ({"keypoint_noise": 2.0}, "keypoint_noise is on the joints that are drawn; set stem: heatmaps"),
    ({"terms": ["pose", "pose"]}, "names one twice"),
])
def test_options_that_contradict(options, line):
    """Options that cannot be meant together are refused with the remedy."""
    with pytest.raises(ValidationError, match=line):
        Options(**options)


def test_crops_too_small_and_joints_missing():
    """A crop whose last map has under 7 cells under the published pooling, and maps without joints: one line each."""
    with pytest.raises(InputError, match="the last map of a 64-pixel crop has only 2 cells a side and 7 are averaged; set crop"):
        small(pool="corner")(plain_batch(torch.zeros(1, 3, 64, 64)))
    with pytest.raises(InputError, match="this model is told where the joints are in the picture, and was given none"):
        small(stem="heatmaps")(plain_batch(torch.zeros(1, 3, 64, 64)))


def test_option_file_is_the_comparisons_network(converted):
    """options/dex_ycb_boukhayma.yaml means the network of `convert boukhayma_dexycb`, at 256 pixels, mesh terms alone."""
    options = load_options("options/dex_ycb_boukhayma.yaml", [])
    require_same_method(converted["boukhayma_dexycb"], "ours.pt", options.method.model_dump(mode="json"), frozenset())
    assert options.crop.pixels == 256 and options.loss == {"verts": 1, "normal": 0.1, "edge": 1}
    assert (options.train.epochs, options.train.batch, options.train.milestones) == (16, 32, [5, 10])
