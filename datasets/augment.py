"""Crop and augmentation options, and the batched operations behind them (filled in below as they land)."""
from pydantic import Field

from utils.strict import Strict


class CropOptions(Strict):
    """The picture a network sees: a square of side `factor` times the hand's box, resampled to `pixels`."""

    pixels: int = Field(224, ge=16, le=1024, description="side of the network's input")
    factor: float = Field(2.0, gt=0.5, le=8, description="side of the crop / longer side of the box of the joints")
    antialias: bool = Field(True, description="average several samples per pixel where the crop is shrunk; Seed: the originals do not")


class AugmentOptions(Strict):
    """Random changes of training samples. All off by default; idhandmesh's colour is brightness 32, contrast and saturation 0.5, hue 18."""

    rotate: float = Field(0.0, ge=0, le=180, description="in-plane rotation, uniform within ± degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="crop side times exp(u), u uniform within ± log(1 + scale)")
    shift: float = Field(0.0, ge=0, lt=1, description="shift of the crop, uniform within ± this share of its side, in x and in y")
    probability: float = Field(0.5, ge=0, le=1, description="chance of each of the four colour changes")
    brightness: float = Field(0.0, ge=0, le=255, description="added, uniform within ± of 255")
    contrast: float = Field(0.0, ge=0, lt=1, description="factor on the values, uniform in 1 ± contrast")
    saturation: float = Field(0.0, ge=0, lt=1, description="factor on the saturation, uniform in 1 ± saturation")
    hue: float = Field(0.0, ge=0, le=180, description="added to the hue, uniform within ± degrees")
    erase: float = Field(0.0, ge=0, le=1, description="chance of one grey rectangle of 2 to 20 % of the crop")
    noise: float = Field(0.0, ge=0, le=255, description="largest standard deviation of added noise, of 255")
