"""utils/panels.py: what is drawn lies where the camera says, in the right colour, with or without mask, 2D joints and place."""
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.demo_cases import HAND, a_hand, iou
from utils.joints import T21_PARENTS
from utils.panels import MASK_RGB, Notes, five_panels
from utils.panels_3d import CAMERA_RGB, _ticks, bones_in_space, mesh_in_space, space, view_of
from utils.panels_draw import DENSE, FINGER_RGB, RGB_OF_JOINT, WRIST_RGB, mesh_layer
from utils.render import render

SIZE = 224
K = np.array([[600.0, 0, 112.4], [0, 598, 111.8], [0, 0, 1]])
FACES = HAND.faces.numpy()
TRUTH = a_hand(root=(-0.04, 0.04, 0.55))
VERTS, JOINTS = ((part + TRUTH.root).double().numpy() for part in (TRUTH.verts, TRUTH.joints))


def photo(size: int = SIZE, rgb: tuple[int, int, int] = (90, 90, 90)) -> np.ndarray:
    return np.full((size, size, 3), rgb, np.uint8)


def panels(picture: np.ndarray | None = None, mask=None, uv=None, verts=VERTS, joints=JOINTS, camera=K, size=SIZE,
           **more) -> list[np.ndarray]:
    """The five panels, left to right."""
    drawn = five_panels(photo() if picture is None else picture, mask, uv, verts, joints, FACES, camera, size, **more)
    assert drawn.shape == (size, 5 * size, 3) and drawn.dtype == np.uint8
    return np.split(drawn, 5, axis=1)


def pixels(points: np.ndarray, camera: np.ndarray = K) -> np.ndarray:
    seen = points @ camera.T
    return seen[:, :2] / seen[:, 2:]


def seen_by_the_camera() -> np.ndarray:
    """(SIZE,SIZE) bool: where the mesh is, its inside through the open wrist, too."""
    verts, camera = (torch.from_numpy(value).float() for value in (VERTS, K))
    return (render(verts[None], HAND.faces, camera, SIZE, SIZE, cull="none").face[0] >= 0).numpy()


def changed(after: np.ndarray, before: np.ndarray, by: int = 0) -> np.ndarray:
    """(h,w) bool, without the seams and captions."""
    differs = np.abs(after.astype(int) - before.astype(int)).max(-1) > by
    differs[:, [0, -1]] = False
    differs[-16:] = False
    return differs


def box(mask: np.ndarray) -> np.ndarray:
    """[x0, y0, x1, y1] of the true pixels."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max(), y.max()])


def alike(rgb: np.ndarray, wanted, by: int = 40) -> bool:
    return bool((np.abs(np.asarray(rgb, int) - np.asarray(wanted)) <= by).all())


def test_mesh_lies_where_the_camera_sees_it():
    """The third panel differs from the photograph where the rasteriser sees the mesh, and nowhere else."""
    drawn = changed(panels()[2], photo())
    assert iou(drawn, seen_by_the_camera()) > 0.97
    np.testing.assert_allclose(box(drawn), [*pixels(VERTS).min(0), *pixels(VERTS).max(0)], atol=1.5)


@pytest.mark.parametrize("shown", [64, 112, 224, 448])
def test_a_crop_of_any_size_is_shown_the_same(shown):
    """A picture of n pixels with its K and 2D joints, by the half-pixel rule: the same panels, to half a grey value."""
    scale = shown / SIZE
    resized = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5], [0, 0, 1]])
    uv = pixels(JOINTS) + 5
    mine = panels(photo(shown), uv=pixels(JOINTS, resized @ K) + 5 * scale, camera=resized @ K)
    for which, other in enumerate(panels(uv=uv)[1:], 1):
        assert np.abs(mine[which].astype(int) - other).mean() < 0.5


@pytest.mark.parametrize("size", [96, 224, 320])
def test_sizes(size):
    """Panels of other sizes: the mesh takes the same share of them."""
    drawn = changed(panels(size=size)[2], photo(size))
    assert drawn.sum() / size**2 == pytest.approx(changed(panels()[2], photo()).sum() / SIZE**2, rel=0.05)


def test_joints_have_their_fingers_colours():
    """Predicted 2D joints: a disc of the finger's colour at each, a line of it to its parent; the wrist is white."""
    uv = np.stack([20 + 9.0 * np.arange(21), 30 + 37 * (np.arange(21) % 5.0)], 1)
    panel = panels(uv=uv)[1]
    for joint, (x, y) in enumerate(uv.round().astype(int)):
        assert alike(panel[y, x], RGB_OF_JOINT[joint])
    for joint, parent in enumerate(T21_PARENTS):
        if joint % 4 != 1:
            continue
        x, y = (0.5 * (uv[joint] + uv[parent])).round().astype(int)
        assert alike(panel[y, x], RGB_OF_JOINT[joint], 90) or np.linalg.norm(uv - [x, y], axis=1).min() < 10
    assert RGB_OF_JOINT[0] == WRIST_RGB and len(set(FINGER_RGB)) == 5 and panel[-8, 150].mean() == 90


def test_without_2d_joints_the_projected_ones_are_drawn():
    """The same picture as with the projection given, but for the caption that says so."""
    given_uv, own = panels(uv=pixels(JOINTS))[1], panels()[1]
    assert not changed(own, given_uv).any()
    assert own[-8, 150].mean() < 60 and own[-13:, 2:120].max() > 180


def test_unknown_joints_are_left_out():
    """NaN, infinite and far joints: they and their bones are not drawn, the others are."""
    uv = pixels(JOINTS)
    uv[[3, 8]], uv[20] = np.nan, 1e30
    panel = panels(uv=uv)[1]
    x, y = uv[12].round().astype(int)
    assert alike(panel[y, x], FINGER_RGB[2])
    assert not changed(panels(uv=np.full((21, 2), np.nan))[1], photo()).any()


def test_mask_is_red_at_half_weight_with_its_largest_part_outlined():
    """A mask of two discs: both tinted exactly, the larger one with a full red rim, the smaller without; no caption."""
    mask = np.zeros((112, 112), np.float32)
    cv2.circle(mask, (60, 50), 25, 1.0, -1)
    cv2.circle(mask, (15, 15), 6, 1.0, -1)
    panel = panels(photo(rgb=(10, 200, 80)), mask=mask)[0]
    tinted = (np.array([10, 200, 80]) + MASK_RGB) // 2
    assert (panel[100, 120] == tinted).all() and (panel[30, 30] == tinted).all() and (panel[200, 200] == [10, 200, 80]).all()
    red = (panel == MASK_RGB).all(-1)
    np.testing.assert_allclose(box(red), [2 * 60 - 50, 2 * 50 - 50, 2 * 60 + 51, 2 * 50 + 51], atol=2)
    assert not red[:50, :50].any() and panel[-8, 150, 1] == 200


@pytest.mark.parametrize(("value", "inside"), [(0.29, False), (0.31, True)])
def test_chances_count_from_three_tenths(value, inside):
    """The threshold by which the mask places the hand."""
    panel = panels(mask=np.full((56, 56), value))[0]
    assert alike(panel[100, 100], [172, 45, 45], 1) == inside
    assert (panel[-8, 150].mean() < 60) != inside  # "empty mask"


def test_without_a_mask_the_mesh_s_silhouette_is_shown():
    """Red where the mesh is seen, and a caption."""
    panel = panels()[0]
    drawn, seen = changed(panel, photo(), 30), seen_by_the_camera().astype(np.uint8)
    assert drawn[cv2.erode(seen, np.ones((3, 3))) > 0].all() and not drawn[cv2.dilate(seen, np.ones((7, 7))) == 0].any()
    assert (panel[drawn][:, 0] > panel[drawn][:, 2] + 60).all() and panel[-8, 150].mean() < 60


def test_a_given_contour_takes_the_outline_s_place():
    """A square in the shape that cv2 returns contours in: red lines along it, and not around the mask."""
    mask = np.zeros((112, 112))
    mask[40:60, 40:60] = 1
    square = np.array([[[20, 20]], [[180, 20]], [[180, 180]], [[20, 180]]])
    panel = panels(mask=mask, contour=square)[0]
    assert alike(panel[20, 100], MASK_RGB, 8) and alike(panel[100, 180], MASK_RGB, 8) and not alike(panel[80, 100], MASK_RGB, 8)


def test_a_hand_behind_the_camera():
    """Photographs stay as they are, and the space is drawn all the same."""
    behind = [part - [0, 0, 1.0] for part in (VERTS, JOINTS)]
    drawn = panels(mask=np.zeros((8, 8)), verts=behind[0], joints=behind[1])
    assert not any(changed(panel, photo()).any() for panel in drawn[:3])
    assert len(np.unique(drawn[3].reshape(-1, 3), axis=0)) > 100


@settings(deadline=None, max_examples=40)
@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.2, 8), st.booleans())
def test_the_view_is_a_rotation_with_one_scale(x, y, z, camera):
    """Any place: orthonormal axes, right-handed; pixels are that rotation times one scale; all lies in box and panel."""
    points = JOINTS - JOINTS[0] + (np.array([x, y, z]) if camera else 0)
    view = view_of(points, SIZE, camera)
    np.testing.assert_allclose(view.rotation @ view.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(view.rotation) == pytest.approx(1) and view.rotation[2, 2] > 0.6
    turned = points @ view.rotation.T
    np.testing.assert_allclose(view.pixels(points) - view.pixels(points[0]), view.scale * (turned - turned[0])[:, :2], atol=1e-8)
    np.testing.assert_allclose(np.diff(view.depth(points)), np.diff(turned[:, 2]), atol=1e-9)
    low, high = view.ranges.T
    assert (low <= points.min(0)).all() and (high >= points.max(0)).all() and (low <= 0).all() and (high >= 0).all()
    np.testing.assert_allclose(view.ranges * 20, (view.ranges * 20).round(), atol=1e-6)
    if camera:
        assert low[2] == 0 and (low[:2] <= -0.1).all() and (high[:2] >= 0.1).all()
    corners = view.pixels(np.array([[a, b, c] for a in view.ranges[0] for b in view.ranges[1] for c in view.ranges[2]]))
    assert (corners > 8).all() and (corners < SIZE - 8).all()


def test_mesh_and_joints_share_the_space_and_lie_where_the_view_says():
    """Against the empty box with the same camera (a mesh of one point): the mesh's box is that of its projected vertices."""
    view = view_of(np.concatenate([VERTS, JOINTS]), SIZE, camera=False)  # no camera, whose lines would count
    base = space(view, SIZE)
    empty = cv2.resize(base, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    drawn = changed(mesh_in_space(view, base, VERTS, FACES, K, SIZE), empty, by=40)  # the shadow is fainter
    at = view.pixels(VERTS)
    np.testing.assert_allclose(box(drawn), [*at.min(0), *at.max(0)], atol=1.5)
    panel = bones_in_space(view, base, JOINTS, K, SIZE)
    for joint in (4, 8, 12, 16, 20):
        x, y = view.pixels(JOINTS[joint]).round().astype(int)
        near = view.pixels(np.delete(JOINTS, joint, 0)) - [x, y]
        assert alike(panel[y, x], RGB_OF_JOINT[joint]) or np.linalg.norm(near, axis=1).min() < 7


def test_the_camera_is_drawn_where_it_stands():
    """Red at its origin and its square's corners, which look through the picture's corners; none about the wrist."""
    view = view_of(np.concatenate([VERTS, JOINTS]), SIZE, camera=True)
    corner = np.array([-0.5, -0.5, 1]) @ np.linalg.inv(K).T
    corner *= 0.05 * K[0, 0] / SIZE
    absolute, relative = panels()[3:], panels(absolute=False)[3:]
    for panel in absolute:
        for x, y in view.pixels(np.stack([np.zeros(3), corner])).round().astype(int):
            assert alike(panel[y - 1:y + 2, x - 1:x + 2].reshape(-1, 3).min(0), CAMERA_RGB, 70)
    assert not any(alike(rgb, CAMERA_RGB, 20) for rgb in relative[0].reshape(-1, 3))


def test_about_the_wrist_the_place_does_not_matter():
    """Without a known place, the space is the same wherever the hand is drawn, larger than with the camera, and says so."""
    far = [part + [0.1, 0, 0.5] for part in (VERTS, JOINTS)]
    here, there = panels(absolute=False), panels(absolute=False, verts=far[0], joints=far[1])
    assert (here[3] == there[3]).all() and (here[4] == there[4]).all() and (here[2] != there[2]).any()
    assert here[3][2:12, 2:100].min() < 150 and panels()[3][2:12, 2:100].min() == 255


@pytest.mark.parametrize("size", [0.2, 0.5, 1, 10])
def test_an_axis_has_at_least_two_numbers(size):
    """A small hand's box of 0.1 m is ruled by 0.05 m: one number alone gives no scale; a large one has six at most."""
    ranges = view_of(size * (JOINTS - JOINTS[0]), SIZE, camera=False).ranges
    assert all(2 <= len(_ticks(*pair)) <= 6 for pair in ranges)


def test_captions():
    """Notes appear where they belong: of the place under the third panel, of the camera over the last two."""
    plain, noted = panels(), panels(notes=Notes("placed by the box", "nominal camera"))
    differs = [(a != b).any() for a, b in zip(plain, noted)]
    assert differs == [False, False, True, True, True]
    assert (plain[2] != noted[2]).any(-1).nonzero()[0].min() >= SIZE - 14
    assert (plain[3] != noted[3]).any(-1).nonzero()[0].max() < 14


def test_nearer_hides_farther_and_inside_looks_different():
    """Two squares of opposite sides: whichever is nearer decides the colour, blue outside, brown inside; edges are darker."""
    square = np.array([[40.0, 40], [180, 40], [180, 180], [40, 180]])
    at = np.concatenate([square, square])
    faces = np.array([[0, 2, 1], [0, 3, 2], [4, 5, 6], [4, 6, 7]])  # outside, then inside
    verts = np.concatenate([np.pad(square, ((0, 0), (0, 1))), np.pad(square, ((0, 0), (0, 1)), constant_values=1)])
    front = mesh_layer(at, np.repeat([1.0, 2.0], 4), verts, faces, SIZE, edges=0)
    back = mesh_layer(at, np.repeat([2.0, 1.0], 4), verts, faces, SIZE, edges=0)
    assert front.rgb[100, 120, 2] > front.rgb[100, 120, 0] and back.rgb[100, 120, 0] > back.rgb[100, 120, 2]
    assert front.cover[100, 120] == 1 and front.cover[20, 20] == 0 and (front.rgb[20, 20] == 0).all()
    edged = mesh_layer(at, np.repeat([1.0, 2.0], 4), verts, faces, SIZE, edges=1)
    assert edged.rgb[110, 110].sum() < 0.8 * front.rgb[110, 110].sum()  # on the diagonal
    assert (edged.rgb[100, 140] == front.rgb[100, 140]).all() and DENSE * front.cover.shape[0] == 448


def test_a_mesh_gone_wild_is_painted():
    """Random vertices all over the picture: drawn without the memory of all their fragments; nearer still hides farther."""
    generator = np.random.default_rng(0)
    wild = np.concatenate([generator.uniform(-0.4, 0.4, (778, 2)), generator.uniform(0.3, 0.6, (778, 1))], 1)
    assert changed(panels(verts=wild)[2], photo()).mean() > 0.8
    square = np.array([[10.0, 10], [210, 10], [210, 210], [10, 210]])
    at = np.concatenate([square] * 60)
    faces = np.concatenate([np.array([[0, 2, 1], [0, 3, 2]]) + 4 * k for k in range(60)])
    verts = np.pad(at, ((0, 0), (0, 1)))
    faces[:2] = faces[:2, ::-1]  # the first square shows its inside
    for depth, inside in ((1.0, True), (9.0, False)):
        layer = mesh_layer(at, np.repeat([depth, *np.linspace(2, 3, 59)], 4), verts, faces, SIZE)
        red, blue = layer.rgb[100, 120, [0, 2]]
        assert (red > blue) == inside and layer.cover[100, 120] == 1 and layer.cover[5, 5] == 0
