"""DexYCB: options, preparation and reader."""
from typing import Literal

from pydantic import Field

from utils.strict import Strict

SERIALS = ("836212060125", "839512060362", "840412060917", "841412060263",
           "932122060857", "932122060861", "932122061900", "932122062010")


class StoredOptions(Strict):
    """The crops that `prepare` cuts once. A wider factor than crop.factor leaves room for augmentation."""

    factor: float = Field(2.0, gt=0.5, le=8, description="side of the stored crop / longer side of the box of the joints")
    pixels: int | None = Field(None, ge=16, le=1024, description="side of the stored crop; null = its native size")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality")


class Options(Strict):
    """`dataset:` of an option file, for prepare and for reading."""

    name: Literal["dex_ycb"] = "dex_ycb"
    root: str = Field("data/dex_ycb", description="folder of the dataset (DEX_YCB_DIR)")
    prepared: str = Field("out/prepared/dex_ycb", description="folder that prepare writes and the reader reads")
    hands: Literal["right", "mirror_left"] = Field("right", description="right hands only, or both with the left mirrored")
    in_image: bool = Field(True, description="only frames whose 21 joints all lie in the picture")
    left_shapedirs: Literal["as_is", "flip_x", "negate"] = Field("as_is", description="labels of left hands use MANO_LEFT unmended")
    width: int = Field(640, ge=16, description="width of the pictures, pixels")
    height: int = Field(480, ge=16, description="height of the pictures, pixels")
    serials: tuple[str, ...] = Field(SERIALS, min_length=1, description="cameras in index order")
    stored: StoredOptions = StoredOptions()
    stride: int = Field(1, ge=1, description="prepare every k-th frame of a sequence")
    limit: int | None = Field(None, ge=1, description="prepare at most this many frames per camera of a sequence")
    unreadable: Literal["stop", "skip"] = Field("stop", description="a broken file: stop with its name, or leave the frame out and count it")
    workers: int = Field(0, ge=0, description="processes of prepare; 0 = one per core")

    setup: Literal["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s9", "s10", "s11"] = "s1"
    sequences: Literal["even", "odd"] | tuple[str, ...] | None = Field(
        None, description="read only these: every other sequence of each person and side, or names; null = all")
    every: int = Field(1, ge=1, description="read every k-th frame of the split")
    frames: int | None = Field(None, ge=1, description="read at most this many, evenly spread over the split")
    read_pixels: int | None = Field(None, ge=16, le=1024, description="native-size crops are resized to this on reading; null = fits crop")
