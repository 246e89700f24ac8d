"""Shadows of the key light: one shadow map per time step, for skin and things by depth, for the table by a homography.

The lamp is a pinhole camera far away along the light's direction that looks at the middle of what it lights. A second, coarse map
from straight above darkens the table under things (light from the sky that they keep away).
"""
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from datasets.synthetic.backdrop import Background
from utils.render import render

PIXELS, RADIUS_M, LAMP_M = 224, 0.30, 4.0  # of the map: side, half of the width it sees, distance of the lamp
ABOVE_PIXELS, ABOVE_SHARE = 96, 0.35
SLACK_M = 0.0045  # a surface does not shade itself
DARKEST = 0.12    # what is left of the key light in full shadow: light that other surfaces throw back


@dataclass(frozen=True)
class Shadows:
    """t time steps. lamp_from_table (t,4,4) · K (3,3) of the lamp · depth (t,p,p) from it, 0 = lit · masks: its blurred
    silhouettes, uint8, one per step · above_from_table (t,4,4), K_above, masks_above likewise from straight above.
    """

    lamp_from_table: torch.Tensor
    K: torch.Tensor
    depth: torch.Tensor
    masks: list[np.ndarray]
    above_from_table: torch.Tensor
    K_above: torch.Tensor
    masks_above: list[np.ndarray]

    def visible(self, step: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Share (n) of the key light that reaches points (n,3), table frame, of rising time steps (n): soft at the edges."""
        local = torch.empty_like(points)
        ends = [0, *torch.searchsorted(step, torch.arange(1, len(self.lamp_from_table) + 1)).tolist()]
        for pose, begin, end in zip(self.lamp_from_table, ends, ends[1:]):
            torch.addmm(pose[:3, 3], points[begin:end], pose[:3, :3].T, out=local[begin:end])
        size, z = self.depth.shape[-1], local[:, 2]
        uv = (local[:, :2] / z[:, None]) * self.K[0, 0] + self.K[0, 2]
        corner = uv.floor()
        share = uv - corner
        x, y = corner.long().clamp_(0, size - 2).unbind(1)
        base = (step * size + y) * size + x
        flat = self.depth.view(-1)
        lit = []
        for shift in (0, 1, size, size + 1):
            nearest = flat.index_select(0, base + shift)
            lit.append(((nearest == 0) | (nearest > z - SLACK_M)).float())
        top = lit[0] + (lit[1] - lit[0]) * share[:, 0]
        bottom = lit[2] + (lit[3] - lit[2]) * share[:, 0]
        return DARKEST + (1 - DARKEST) * (top + (bottom - top) * share[:, 1])

    def darken(self, t: int, background: Background, camera_from_table: np.ndarray, K: np.ndarray,
               key_share: np.ndarray) -> np.ndarray:
        """A copy of the empty scene with the shadows of time step t on the table; key_share (3) of the table's light."""
        image = background.image.copy()
        key = self.lamp_from_table, self.K, self.masks[t], key_share * (1 - DARKEST)
        sky = self.above_from_table, self.K_above, self.masks_above[t], ABOVE_SHARE * (1 - key_share)
        for pose, lamp, mask, strength in (key, sky):
            table = pose[t].numpy().astype(np.float64)
            lamp_from_plane = lamp.numpy().astype(np.float64) @ table[:3][:, [0, 1, 3]]
            camera_from_plane = K @ camera_from_table[:3][:, [0, 1, 3]]
            _multiply(image, mask, camera_from_plane @ np.linalg.inv(lamp_from_plane), background.table, strength)
        return image


def cast(verts: torch.Tensor, faces: torch.Tensor, direction: np.ndarray) -> Shadows:
    """Shadow maps of posed meshes (t,v,3), table frame, for light from `direction` (3)."""
    used = verts[:, faces.unique()] if len(faces) else verts[:, :1] * 0
    # Everything on the table near the hand fits; what lies farther away casts no shadow.
    centre = (used.amin(1) + used.amax(1)) / 2
    centre = centre.clamp(-0.12, 0.12)
    poses, K, depth = _map(verts, faces, torch.from_numpy(direction).float(), centre, PIXELS)
    masks = [cv2.GaussianBlur(_silhouette(d), (0, 0), 1.6) for d in depth]
    poses_above, K_above, depth_above = _map(verts, faces, torch.tensor([0.0, 0.0, 1.0]), centre, ABOVE_PIXELS)
    above = [cv2.GaussianBlur(_silhouette(d), (0, 0), 4.0) for d in depth_above]
    return Shadows(poses, K, depth, masks, poses_above, K_above, above)


def _map(verts: torch.Tensor, faces: torch.Tensor, direction: torch.Tensor, centre: torch.Tensor, pixels: int):
    """Lamp poses (t,4,4), its K and depth (t,p,p)."""
    z = -direction
    x = torch.nn.functional.normalize(torch.linalg.cross(z.new_tensor([0.3, 1.0, 0.1]), z), dim=0)
    turn = torch.stack([x, torch.linalg.cross(z, x), z])
    poses = torch.eye(4).repeat(len(verts), 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = turn, -(centre @ turn.T) + torch.tensor([0, 0, LAMP_M])
    focal = pixels / 2 / RADIUS_M * LAMP_M
    K = torch.tensor([[focal, 0, (pixels - 1) / 2], [0, focal, (pixels - 1) / 2], [0, 0, 1.0]])
    local = verts @ turn.T + poses[:, None, :3, 3]
    return poses, K, render(local, faces, K, pixels, pixels, cull="none").depth


def _silhouette(depth: torch.Tensor) -> np.ndarray:
    """uint8 mask with an empty border."""
    mask = (depth > 0).to(torch.uint8).mul_(255).numpy()
    mask[[0, -1]], mask[:, [0, -1]] = 0, 0
    return mask


def _multiply(image: np.ndarray, mask: np.ndarray, image_from_mask: np.ndarray, table: np.ndarray, strength: np.ndarray) -> None:
    """Darken the part of the image (in place) that the warped mask covers, by `strength` (3) of the light, where the table is."""
    height, width = table.shape
    side = mask.shape[0] - 1
    corners = image_from_mask @ np.array([[0, side, side, 0], [0, 0, side, side], [1, 1, 1, 1.0]])
    if (corners[2] * np.sign(corners[2, 0]) <= 1e-9).any():
        x0, y0, x1, y1 = 0, 0, width, height
    else:
        corners = corners[:2] / corners[2]
        x0, y0 = (int(max(0, v)) for v in np.floor(corners.min(1)))
        x1, y1 = (int(min(m, v)) for m, v in zip((width, height), np.ceil(corners.max(1)) + 1))
    if x0 >= x1 or y0 >= y1:
        return
    shift = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1.0]])
    local = cv2.warpPerspective(mask, shift @ image_from_mask, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    local *= table[y0:y1, x0:x1]
    levels = np.arange(256)[:, None] / 255
    factor = np.rint(255 * np.power(1 - np.clip(strength, 0, 0.99) * levels, 1 / 2.2)).astype(np.uint8)[None]
    part = image[y0:y1, x0:x1]
    image[y0:y1, x0:x1] = cv2.multiply(part, cv2.LUT(cv2.merge([local] * 3), factor), scale=1 / 255)
