"""Weld a straight or curved seam within the tolerances of the process."""

from neuraverse_envs.weld_seam.task import WeldSeam

__all__ = ["WeldSeam"]
