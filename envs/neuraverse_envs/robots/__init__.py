"""Built-in arms: one folder each, with a mesh-free MJCF and a robot.toml, or a robot.toml on another's base.

`neuraverse.sim.robot` finds them through `register_robots`; your package can register its own folder alike.
"""

from pathlib import Path

from neuraverse.sim.robot import register_robots

register_robots(Path(__file__).parent)
