"""A developer: a task of one's own, from an example. Hard mode of WeldSeam: lateral ±0.5 mm, speed ±10 %.

    python examples/developer.py
    PYTHONPATH=examples neuraverse train developer:examples/WeldSeamHard-v0 skill.name=lab/weld-seam-hard

Importing this module registers the task; any process that is given the id imports it by itself.
"""

from neuraverse.sim.registration import register
from neuraverse.sim.testing import check_task
from neuraverse_envs.weld_seam.task import ANGLE_TOLERANCE_RAD, DISTANCE_TOLERANCE_M, WeldSeam


class WeldSeamHard(WeldSeam):
    """WeldSeam with half the lateral tolerance and less than half that of speed."""

    tolerances = (0.5e-3, DISTANCE_TOLERANCE_M, ANGLE_TOLERANCE_RAD, ANGLE_TOLERANCE_RAD, 0.10)
    success = "as WeldSeam, but lateral ±0.5 mm and speed within ±10 %"


register("examples/WeldSeamHard-v0", WeldSeamHard)

if __name__ == "__main__":
    for check in check_task("examples/WeldSeamHard-v0", robot="ur5e"):
        print("ok  " if check.passed else "FAIL", check.name, "-", check.detail)
