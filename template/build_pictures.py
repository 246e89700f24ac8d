"""Draw the pictures of template/README.md from the baked hands: `PYTHONPATH=. python template/build_pictures.py`.

Uses this project's own hand model and renderer (no anny); writes PNG files of fewer than 300 kB into template/pictures/.
"""
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from utils.hand import HandModel
from utils.render import overlay, vertex_normals
from utils.rotation import matrix_from_axis_angle

HERE = Path(__file__).parent
DISTANCE_M, SKIN = 0.9, (0.80, 0.60, 0.50)
# Rows: right, down, forward of the camera in MANO's axes of the right hand; fingers (-x) up in the picture.
VIEWS = {"palm": [[0, 0, 1], [1, 0, 0], [0, 1, 0]], "back": [[0, 0, -1], [1, 0, 0], [0, -1, 0]],
         "thumb side": [[0, 1, 0], [1, 0, 0], [0, 0, -1]], "little side": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
         "tips": [[0, 0, 1], [0, -1, 0], [1, 0, 0]]}


def between(one: str, two: str, share: float) -> np.ndarray:
    """Camera turned from view `one` towards view `two` about the finger axis."""
    a, b = np.array(VIEWS[one], float), np.array(VIEWS[two], float)
    forward = (1 - share) * a[2] + share * b[2]
    forward /= np.linalg.norm(forward)
    return np.stack([np.cross(a[1], forward), a[1], forward])


def picture(verts: torch.Tensor, faces: torch.Tensor, view: np.ndarray, size: int, title: str = "", width_m: float = 0.26,
            centre: tuple[float, float, float] = (0.005, -0.01, 0.005), wire: bool = False,
            colour: tuple | np.ndarray = SKIN) -> np.ndarray:
    """One shaded view (size,size,3) uint8 of verts (778,3), `width_m` metres wide."""
    focal = size * DISTANCE_M / width_m
    K = torch.tensor([[focal, 0, (size - 1) / 2], [0, focal, (size - 1) / 2], [0, 0, 1]])
    camera = (verts - torch.tensor(centre)) @ torch.as_tensor(view, dtype=torch.float32).T + torch.tensor([0, 0, DISTANCE_M])
    image = Image.fromarray(overlay(np.full((size, size, 3), 255, np.uint8), camera, faces, K, colour=colour, supersample=3))
    draw = ImageDraw.Draw(image)
    if wire:
        uv = (camera @ K.T)[:, :2] / camera[:, 2:]
        a, b, c = (camera[faces[:, k]] for k in range(3))
        seen = (torch.linalg.cross(b - a, c - a) * a).sum(-1) < 0
        for face in faces[seen].tolist():
            draw.polygon([tuple(uv[v].tolist()) for v in face], outline=(110, 80, 70))
    draw.text((6, 4), title, fill=(60, 60, 60), font_size=14)
    return np.asarray(image)


def swelling(rest: torch.Tensor, verts: torch.Tensor, faces: torch.Tensor) -> tuple[np.ndarray, float]:
    """Colours (778,3): red where the skin moved outwards, blue inwards (full colour: the largest move), and that move in mm."""
    out = ((verts - rest) * vertex_normals(rest, faces)).sum(-1)
    share = (out / out.abs().max())[:, None]
    white = torch.full((3,), 0.85)
    red, blue = torch.tensor([0.85, 0.15, 0.1]), torch.tensor([0.1, 0.25, 0.85])
    return (white + share.clamp(min=0) * (red - white) + (-share).clamp(min=0) * (blue - white)).numpy(), \
        1e3 * float((verts - rest).norm(dim=-1).max())


def sheet(cells: list[np.ndarray], columns: int, path: Path) -> None:
    """Tile equal cells row by row and write them as a palette PNG."""
    blank = np.full_like(cells[0], 255)
    cells = cells + [blank] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i:i + columns], 1) for i in range(0, len(cells), columns)]
    image = Image.fromarray(np.concatenate(rows)).quantize(160, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def main() -> None:
    right, left = (HandModel.load(HERE / f"free_hand_{side}.npz") for side in ("right", "left"))
    content = np.load(HERE / "free_hand_right.npz")
    faces = torch.as_tensor(content["f"]).long()
    flat = torch.eye(3).expand(16, 3, 3)
    rest = right(flat, torch.zeros(10)).verts
    out = HERE / "pictures"
    out.mkdir(exist_ok=True)

    views = [picture(rest, faces, np.array(VIEWS[v]), 300, v) for v in ("palm", "back", "thumb side", "tips")]
    views.append(picture(left(flat, torch.zeros(10)).verts, torch.as_tensor(np.load(HERE / "free_hand_left.npz")["f"]).long(),
                         np.stack([np.cross([-1.0, 0, 0], [0, 1.0, 0]), [-1.0, 0, 0], [0, 1.0, 0]]), 300, "left hand",
                         centre=(-0.005, -0.01, 0.005)))
    views += [picture(rest, faces, np.array(VIEWS[v]), 300, f"{v}, 1538 faces", wire=True) for v in ("palm", "back")]
    views.append(picture(rest, faces, between("palm", "thumb side", 0.5), 300, "between palm and thumb", wire=True))
    sheet(views, 4, out / "template.png")

    cells = []
    for k in range(10):
        for value in (-2.0, 2.0):
            shape = torch.zeros(10)
            shape[k] = value
            verts = right(flat, shape).verts
            change, mm = swelling(rest, verts, faces)
            cells.append(picture(verts, faces, np.array(VIEWS["palm"]), 190, f"shape {k + 1}: {value:+.0f}, {mm:.1f} mm",
                                 width_m=0.28, colour=change))
    sheet(cells, 4, out / "shapes.png")

    cells = []
    poses = {"mean": content["hands_mean"], **dict(zip(content["pose_names"].tolist(), content["named_poses"]))}
    poses.pop("any")
    for name, pose in poses.items():
        turns = torch.cat([flat[:1], matrix_from_axis_angle(torch.as_tensor(pose).reshape(15, 3))])
        verts = right(turns, torch.zeros(10)).verts
        for view, title in ((np.array(VIEWS["palm"]), name), (between("palm", "thumb side", 0.75), "")):
            cells.append(picture(verts, faces, view, 170, title, width_m=0.25))
    sheet(cells, 8, out / "poses.png")


if __name__ == "__main__":
    main()
