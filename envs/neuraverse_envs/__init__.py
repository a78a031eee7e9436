"""The environments that come with Neuraverse; importing this module registers them with Gymnasium.

Copy a folder beside this file to make a task of your own, and register it here or in a package of yours.
"""

from neuraverse.sim.registration import register
from neuraverse_envs.weld_seam.task import WeldSeam

register("neuraverse/WeldSeam-v0", WeldSeam)
