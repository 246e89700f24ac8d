"""Small fully connected heads, whose answers stay in float32 under autocast."""
import torch.nn.functional as F
from torch import Tensor, nn

from utils.precision import full_precision


class Mlp(nn.ModuleList):
    """Linear layers with ReLU and drop-out between them; the last layer runs in float32 also under autocast."""

    def __init__(self, sizes: tuple[int, ...], dropout: float = 0.0, drop_input: float = 0.0):
        super().__init__(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.dropout, self.drop_input = dropout, drop_input

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """extra: added to the first layer's output, as further inputs would be."""
        x = F.dropout(x, self.drop_input, self.training)
        for index in range(len(self) - 1):
            x = self[index](x)
            if index == 0 and extra is not None:
                x = x + extra
            x = F.dropout(F.relu(x), self.dropout, self.training)
        return linear(x, self[len(self) - 1])


@full_precision
def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """`layer` in float32 also under autocast: 6D rotations and shapes lose too much in half precision."""
    return layer(x)
