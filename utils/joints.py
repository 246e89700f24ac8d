"""Named joint orders and fingertip sets, so that no file hard-codes a permutation (specs: MANO 3.3).

T21  0 wrist; 1-4 thumb; 5-8 index; 9-12 middle; 13-16 ring; 17-20 little, base to tip. The order at every border here.
M16  MANO's chain: 0 wrist; 1-3 index; 4-6 middle; 7-9 little; 10-12 ring; 13-15 thumb, base to tip.
H21  HO3D: M16, then tips 16 thumb, 17 index, 18 middle, 19 ring, 20 little.
RHD: 0 wrist; 1-4 thumb, 5-8 index, 9-12 middle, 13-16 ring, 17-20 little, tip to base.
InterHand2.6M: 0-3 thumb, 4-7 index, 8-11 middle, 12-15 ring, 16-19 little, tip to base; 20 wrist.
M16 plus five tips (thumb, index, middle, ring, little) *is* H21; `T21_FROM_H21` turns it into T21 by indexing.
"""
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)  # of M16
T21_PARENTS = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)

T21_FROM_H21 = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
H21_FROM_T21 = (0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20)
T21_FROM_RHD = (0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17)  # its own inverse
T21_FROM_INTERHAND = (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16)
_FROM_T21 = {"T21": tuple(range(21)), "H21": H21_FROM_T21, "M16": H21_FROM_T21[:16]}

T21_NAMES = ("wrist",) + tuple(f"{finger}_{part}" for finger, parts in (
    ("thumb", ("cmc", "mcp", "ip", "tip")), ("index", ("mcp", "pip", "dip", "tip")), ("middle", ("mcp", "pip", "dip", "tip")),
    ("ring", ("mcp", "pip", "dip", "tip")), ("little", ("mcp", "pip", "dip", "tip"))) for part in parts)

# Vertex ids of thumb, index, middle, ring, little tips. Five sets circulate; a dataset states which it uses.
TIPS = {
    "manopth": (745, 317, 444, 556, 673),   # manopth, DexYCB, the ECCV 2022 identity-aware models
    "smplx": (744, 320, 443, 554, 671),
    "freihand": (744, 320, 443, 555, 672),
    "ho3d": (744, 333, 444, 555, 672),      # HO3D, H2O3D, CMR
    "handoccnet": (728, 353, 442, 576, 694),
}
LEFT_TIPS = {**TIPS, "manopth": (745, 317, 445, 556, 673)}  # manopth's left middle finger differs


def reorder(joints, to: str, of: str):
    """Joints (..., n, c), array or tensor, in the order `of` (T21, H21, M16) put into the order `to`.

    Raises ValueError for an unknown order, another number of joints, or fingertips wanted of M16, which has none.
    """
    for name in (to, of):
        if name not in _FROM_T21:
            raise ValueError(f"joint order {name}: expected one of {', '.join(_FROM_T21)}")
    if of == "M16" and to != "M16":
        raise ValueError(f"M16 has no fingertips: {to} cannot be made of it; use HandModel.joints")
    if joints.shape[-2] != len(_FROM_T21[of]):
        raise ValueError(f"{of} has {len(_FROM_T21[of])} joints, found {joints.shape[-2]}")
    return joints[..., [_FROM_T21[of].index(j) for j in _FROM_T21[to]], :]
