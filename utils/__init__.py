"""Geometry and plumbing below methods and datasets: hand model, rotations, camera, metrics, renderer, files."""
