"""The demo's five panels of a hand (src/plots.py): the crop that the network saw, cut again from the picture in full detail."""
import numpy as np
import torch

from src.demo_camera import Camera
from src.demo_geometry import sample
from src.demo_hand import BY_BOX, ShownHand
from src.plots import MIRROR, Plot
from utils.camera import K_of_crop, scale_matrix, transform_uv
from utils.panels import SIZE, Notes

IMAGE = "_img"  # pictures called NNN_img.jpg with NNN_K.npy beside them give NNN_plot.jpg and NNN_mesh.ply


def plot_names(names: list[str]) -> list[str]:
    """The NNN of each picture's results; the whole name where two pictures would share one."""
    short = [name.removesuffix(IMAGE) or name for name in names]
    return [name if short.count(base) > 1 else base for name, base in zip(names, short)]


def plot_of_hand(picture: np.ndarray, camera: Camera, one: ShownHand) -> Plot:
    """The hand in its crop; picture (h,w,3) uint8 RGB, whole and not mirrored."""
    seen, cut = one.seen, one.seen.cut
    shown_from_image = scale_matrix(torch.tensor(SIZE / cut.image.shape[0], dtype=torch.float64)).numpy() @ cut.crop_from_image
    verts, joints, faces = one.verts + one.root, one.joints + one.root, one.faces
    if cut.mirrored:  # as the network saw it; mirrored back as a whole
        picture = picture[:, ::-1]
        verts, joints, faces = verts * MIRROR, joints * MIRROR, faces[:, ::-1]
    K = K_of_crop(torch.from_numpy(cut.K_full), torch.from_numpy(shown_from_image)).numpy()
    uv = None if seen.uv is None else transform_uv(torch.from_numpy(shown_from_image), seen.uv).numpy()
    lent = seen.root_source.startswith(BY_BOX)
    camera_note = "" if camera.metric else "nominal camera"
    place_note = ", ".join(["placed by the box"] + [camera_note] * bool(camera_note)) if lent else ""  # axes are then the wrist's
    plot = Plot(sample(picture, shown_from_image, SIZE, antialias=True), None if seen.mask is None else seen.mask.numpy(), uv,
                verts, joints, faces, K, not lent,
                Notes(place_note, camera_note), place=seen.root_source)
    return plot.mirrored() if cut.mirrored else plot

