"""TensorBoard: one folder `board` per run, written by the first process; a resumed run takes back points that it repeats."""
from pathlib import Path

import torch
from torch import Tensor

from utils.batch import Batch

IMAGES = 16
DOT = torch.tensor([1.0, 0.1, 0.1])  # colour of a joint


class Board:
    """A SummaryWriter, or nothing where `active` is False."""

    def __init__(self, folder: Path, step: int, active: bool):
        self._writer = None
        if active:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(folder / "board"), purge_step=step + 1)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """One point of each curve."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def images(self, name: str, batch: Batch, step: int) -> None:
        """The first images of a batch in one picture, labelled joints as red dots: is the method fed what one thinks?"""
        if self._writer:
            self._writer.add_image(name, tiled(batch), step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer:
            self._writer.close()


def tiled(batch: Batch) -> Tensor:
    """(3,H,W) in [0,1]: up to 16 images of the batch, four in a row, joints_uv drawn where they are known and inside."""
    images = batch.image[:IMAGES].detach().float().cpu().clone().clamp(0, 1)
    n, _, height, width = images.shape
    if batch.joints_uv is not None:
        uv = batch.joints_uv[:IMAGES].detach().cpu().round().long()
        known = batch.has_uv[:IMAGES].cpu().bool() if batch.has_uv is not None else torch.ones(n, dtype=torch.bool)
        inside = (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height) & known.view(n, *[1] * (uv.dim() - 2))
        sample = torch.arange(n)[:, None].expand(inside.shape)[inside]
        images[sample, :, uv[..., 1][inside], uv[..., 0][inside]] = DOT
    columns = min(4, n)
    empty = images.new_zeros(-n % columns, 3, height, width)
    return torch.cat((images, empty)).unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
