"""Training loop."""
from src.train_options import TrainOptions

__all__ = ["TrainOptions"]
