"""Batched Levenberg-Marquardt: pose, position and (if asked) shape of many hands at once, each frame for itself.

solve(hand, observations, start, options, free_shape="no"|"each"|"person", person, shape_mean, shape_cov) -> Solved
"""
from src.solver_data import HandState, Observations, Solved, SolverOptions

__all__ = ["HandState", "Observations", "Solved", "SolverOptions"]
