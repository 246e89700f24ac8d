"""Coarser and coarser meshes of a hand, and how to come back: the pyramid that mesh decoders climb (CMR, METRO).

Quadric-error decimation (Garland and Heckbert, SIGGRAPH 1997) with vertices that never move, up-sampling weights and spiral
tables, by the exact rules of the published code (specs/cmr_boukhayma_metro.md 2.5, 2.6), so that published weights fit.
"""
from typing import NamedTuple

import numpy as np


class Pyramid(NamedTuple):
    """Levels 0 (finest) .. n of one mesh; everything about level i in place i.

    faces: n+1 arrays (f_i,3) int64 · kept: n of (v_{i+1},) int64, the vertices of level i that level i+1 keeps · columns,
    weights: n pairs (v_i,3) int64 and float32, vertex r of level i is the weighted sum of vertices columns[i][r] of level i+1 ·
    spirals: n of (v_i,L) int64.
    """

    faces: tuple[np.ndarray, ...]
    kept: tuple[np.ndarray, ...]
    columns: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    spirals: tuple[np.ndarray, ...]
