"""Pyramids of meshes: decimation, up-sampling weights and spirals against the original's, and what must hold on any mesh."""
from pathlib import Path

import numpy as np
import pytest

from utils.errors import InputError
from utils.hand import HandModel
from utils.mesh import build_pyramid, decimate, one_rings, spirals, upsampling
from utils.pyramid import template_verts

ROOT = Path(__file__).resolve().parent.parent
TOY = np.load(ROOT / "tests/goldens/toy_mesh.npz")       # integers as int16; vertices of level 0 alone, as kept ones never move
SPIRALS = np.load(ROOT / "tests/goldens/spirals.npz")    # integers as int16
CASES = sorted({key.split(".")[0] for key in SPIRALS.files})
LEVELS = [(prefix, level) for prefix in ("", "f4_") for level in range(4)]
SEQUENCES = ((27, 1), (9, 1), (9, 2))


def toy(prefix: str, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of a level of the golden toy mesh, decimated by 2 or by 4 (f4_)."""
    verts = TOY["vertices_0"]
    for above in range(level):
        verts = verts[TOY[f"{prefix}down_keep_{above}"]]
    return verts, TOY[f"{prefix}face_{level}" if level else "face_0"].astype(np.int64)


@pytest.fixture(scope="module")
def free_hand() -> tuple[np.ndarray, np.ndarray]:
    hand = HandModel.load(ROOT / "template/free_hand_right.npz")
    return template_verts(hand, "mean_pose"), hand.arrays.f


def sphere(count: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A closed convex mesh with faces counter-clockwise from outside."""
    from scipy.spatial import ConvexHull
    verts = np.random.default_rng(seed).normal(size=(count, 3))
    verts /= np.linalg.norm(verts, axis=1, keepdims=True)
    faces = ConvexHull(verts).simplices
    a, b, c = (verts[faces[:, k]] for k in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return verts, faces.astype(np.int64)


@pytest.mark.parametrize(("prefix", "level"), LEVELS)
def test_decimation_golden(prefix, level):
    """Kept vertices and faces of every level, factors 2 and 4, exactly the original's."""
    verts, faces = toy(prefix, level)
    kept, coarse = decimate(verts, faces, len(TOY[f"{prefix}down_keep_{level}"]))
    assert np.array_equal(kept, TOY[f"{prefix}down_keep_{level}"]) and np.array_equal(coarse, TOY[f"{prefix}face_{level + 1}"])
    assert kept.dtype == coarse.dtype == np.int64


@pytest.mark.parametrize(("prefix", "level"), LEVELS)
def test_upsampling_golden(prefix, level):
    """The published weights of every level to 1e-7 (float32), at the same columns; a stored zero's column is open."""
    verts, _ = toy(prefix, level)
    coarse_verts, coarse = toy(prefix, level + 1)
    columns, weights = upsampling(verts, coarse_verts, coarse)
    ours, theirs = np.zeros((len(verts), len(coarse_verts))), np.zeros((len(verts), len(coarse_verts)))
    np.add.at(ours, (np.arange(len(verts))[:, None], columns), weights)
    np.add.at(theirs, (TOY[f"{prefix}up_row_{level}"], TOY[f"{prefix}up_col_{level}"]), TOY[f"{prefix}up_val_{level}"])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)
    assert np.array_equal(np.abs(ours) > 1e-7, np.abs(theirs) > 1e-7)


@pytest.mark.parametrize(("prefix", "level"), [*LEVELS[:4], *LEVELS[4:6]])
def test_spirals_golden_toy(prefix, level):
    """Spiral tables of every level, L 27 and 9, dilation 1 and 2, exactly the original's."""
    for length, dilation in SEQUENCES:
        table = spirals(*toy(prefix, level), length, dilation)
        assert np.array_equal(table, TOY[f"{prefix}spiral_L{length}_d{dilation}_{level}"]) and table.dtype == np.int64


@pytest.mark.parametrize("case", CASES)
def test_spirals_golden(case):
    """Rings and spirals of closed, open and two-part meshes, with the fallback to nearest vertices, exactly the original's."""
    verts, faces = SPIRALS[f"{case}.v"], SPIRALS[f"{case}.f"].astype(np.int64)
    rings = one_rings(faces, len(verts))
    assert [len(ring) for ring in rings] == SPIRALS[f"{case}.ring_len"].tolist()
    assert sum(rings, []) == SPIRALS[f"{case}.ring_flat"].tolist()
    tables = [key for key in SPIRALS.files if key.startswith(f"{case}.spiral")]
    assert tables
    for key in tables:
        length, dilation = (int(part[1:]) for part in key.split("_")[-2:])
        assert np.array_equal(spirals(verts, faces, length, dilation), SPIRALS[key]), key


def test_build_pyramid_golden():
    """All of it in one call, against the golden levels and tables."""
    pyramid = build_pyramid(*toy("", 0))
    for level in range(4):
        assert np.array_equal(pyramid.kept[level], TOY[f"down_keep_{level}"])
        assert np.array_equal(pyramid.faces[level + 1], TOY[f"face_{level + 1}"])
        assert np.array_equal(pyramid.spirals[level], TOY[f"spiral_L27_d1_{level}"])
        assert pyramid.weights[level].dtype == np.float32 and pyramid.columns[level].shape == (len(pyramid.spirals[level]), 3)


@pytest.mark.parametrize("keep_boundary", [False, True])
def test_place_does_not_matter(free_hand, keep_boundary):
    """Kept vertices, faces, spirals and barycentric weights stay when the hand is moved; the published weights do not."""
    verts, faces = free_hand
    here, there = (build_pyramid(verts + shift, faces, (2, 2), 9, keep_boundary=keep_boundary) for shift in (0, 0.125))
    for part in ("faces", "kept", "spirals"):
        assert all(np.array_equal(a, b) for a, b in zip(getattr(here, part), getattr(there, part)))
    coarse = verts[here.kept[0]]
    for kind, same in (("barycentric", True), ("published", False)):
        (_, a), (_, b) = (upsampling(verts + shift, coarse + shift, here.faces[1], kind) for shift in (0, 0.125))
        assert np.allclose(a, b, atol=1e-6) == same


def test_barycentric_weights(free_hand):
    """Rows sum to 1, none is negative, kept vertices are theirs alone, and every other comes back as its nearest point."""
    verts, faces = free_hand
    kept, coarse = decimate(verts, faces, 195)
    columns, weights = upsampling(verts, verts[kept], coarse, "barycentric")
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    assert weights.min() >= 0
    own = (columns[kept] == np.arange(len(kept))[:, None]) * weights[kept]
    np.testing.assert_allclose(own.sum(1), 1, atol=1e-9)
    back = (verts[kept][columns] * weights[..., None]).sum(1)
    distance = np.linalg.norm(back - verts, axis=1)
    tried = np.random.default_rng(0).dirichlet((1, 1, 1), 400)  # points of every face
    points = np.einsum("tk,fkx->ftx", tried, verts[kept][coarse]).reshape(-1, 3)
    for vertex in range(0, 778, 50):
        assert distance[vertex] <= np.linalg.norm(points - verts[vertex], axis=1).min() + 1e-12


def test_published_weights_by_hand():
    """Over a face: the foot point's own coordinates; beyond an edge: least squares of the point; beyond a corner: that corner."""
    triangle = np.array([[1.0, 0, 1], [3, 0, 1], [1, 2, 1]])
    points = np.array([[1.5, 0.5, 2], [2, -1, 1], [0, -1, 3]])
    columns, weights = upsampling(points, triangle, np.array([[0, 1, 2]]))
    assert (columns == [0, 1, 2]).all()
    np.testing.assert_allclose(weights[0], (0.5, 0.25, 0.25), atol=1e-12)  # their sum is 1: the nearest point is in the plane
    ends = triangle[:2].T
    np.testing.assert_allclose(weights[1], (*np.linalg.solve(ends.T @ ends, ends.T @ points[1]), 0), atol=1e-12)
    np.testing.assert_allclose(weights[2], (1, 0, 0), atol=1e-12)


def test_flat_sheet_keeps_its_outline():
    """On a square grid, keep_boundary leaves the outline's area whole; without, nothing holds it."""
    x, y = np.meshgrid(np.arange(8.0), np.arange(8.0))
    verts = np.stack([x.ravel(), y.ravel(), 0.3 * np.sin(x * y).ravel()], 1)
    corner = (np.arange(7)[:, None] * 8 + np.arange(7)).ravel()
    faces = np.concatenate([np.stack([corner, corner + 1, corner + 9], 1), np.stack([corner, corner + 9, corner + 8], 1)])

    def area(keep_boundary: bool) -> float:
        kept, coarse = decimate(verts, faces, 16, keep_boundary)
        a, b, c = (verts[kept][coarse[:, k], :2] for k in range(3))
        return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sum() / 2

    assert area(True) == pytest.approx(49)
    assert area(False) < 48


@pytest.mark.parametrize("keep_boundary", [False, True])
def test_levels_of_the_free_hand_are_sheets(free_hand, keep_boundary):
    """Every level: Euler characteristic 1, no edge of three faces, one fan a vertex, so one ring; no spiral falls back."""
    verts, faces = free_hand
    pyramid = build_pyramid(verts, faces, keep_boundary=keep_boundary)
    assert [len(table) for table in pyramid.spirals] == [778, 389, 195, 98] and len(pyramid.kept[3]) == 49
    for level, mesh in enumerate(pyramid.faces):
        count = len(pyramid.spirals[level]) if level < 4 else 49
        directed = mesh[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
        edges, uses = np.unique(np.sort(directed, 1), axis=0, return_counts=True)
        assert uses.max() == 2 and len(np.unique(directed, axis=0)) == len(directed)
        assert count - len(edges) + len(mesh) == 1
        degree = np.bincount(edges.ravel(), minlength=count)
        assert [len(ring) for ring in one_rings(mesh, count)] == degree.tolist()
    for table, mesh in zip(pyramid.spirals, pyramid.faces):
        rings = one_rings(mesh, len(table))
        for vertex, ring in enumerate(rings):  # where it fell back, the ring's order would be that of distances
            assert table[vertex, 0] == vertex and table[vertex, 1:1 + len(ring)].tolist() == ring[:26]
            assert len(set(table[vertex])) == 27


def test_spirals_follow_the_rings():
    """On a closed mesh, each spiral goes through whole rings: no vertex before one that is nearer in edges, and none twice."""
    verts, faces = sphere()
    table = spirals(verts, faces, 40)
    rings = one_rings(faces, len(verts))
    for vertex in range(len(verts)):
        steps, front = {vertex: 0}, [vertex]
        while front:
            front = list({other for one in front for other in rings[one] if other not in steps})
            steps.update({one: max(steps.values()) + 1 for one in front})
        order = [steps[other] for other in table[vertex]]
        assert order == sorted(order) and len(set(table[vertex])) == 40


@pytest.mark.parametrize(("target", "left"), [(120, 120), (500, 120), (60, 60), (4, 4)])
def test_target(target, left):
    """As many vertices as asked for, never more than there are; the kept ones ascend, and the faces name all of them."""
    kept, coarse = decimate(*sphere(), target)
    assert len(kept) == left and (np.diff(kept) > 0).all()
    assert np.array_equal(np.unique(coarse), np.arange(left))


def test_faces_without_area():
    """A face whose corners lie on a line adds no plane and makes no NaN."""
    verts, faces = sphere(60)
    flat = np.concatenate([verts, verts[:1]])
    faces = np.concatenate([faces, [[0, 60, 1]]])
    kept, coarse = decimate(flat, faces, 30)
    columns, weights = upsampling(flat, flat[kept], coarse, "barycentric")
    assert len(kept) == 30 and np.isfinite(weights).all() and columns.max() < 30


@pytest.mark.parametrize(("length", "dilation"), [(27, 2), (0, 1), (50, 1), (9, 0)])
def test_spirals_longer_than_the_mesh(length, dilation):
    """A level with fewer vertices than a spiral has steps is refused in one line that says what to change."""
    with pytest.raises(InputError, match=f"seq_length {length} with dilation {dilation}.*expected 1 to 49.*lower seq_length"):
        spirals(*toy("", 4), length, dilation)
    with pytest.raises(InputError, match="seq_length 27"):
        build_pyramid(*toy("", 0), factors=(4, 4, 4, 4), length=27)


@pytest.mark.parametrize("factors", [(120,), (2, 1e9), (float("inf"),)])
def test_factors_that_leave_no_face(factors):
    """A level without faces is refused in one line that says what to change."""
    with pytest.raises(InputError, match=r"factors [\w.+, ]+: no face is left of a mesh of \d+ vertices .*; lower the"):
        build_pyramid(*sphere(), factors=factors, length=5)
