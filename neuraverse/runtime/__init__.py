"""What runs on a robot: an agent that keeps its skill up to date, and a control loop at a fixed rate.

Importing it costs little; onnxruntime is loaded with the first policy.
"""

from __future__ import annotations

from neuraverse.runtime.agent import Refusal, RobotAgent
from neuraverse.runtime.install import Change, Installer, Reporter
from neuraverse.runtime.linked import Linked
from neuraverse.runtime.loop import LoopReport, Source, run
from neuraverse.runtime.outcomes import Outcomes
from neuraverse.runtime.stage import stage

__all__ = [
    "Change",
    "Installer",
    "Linked",
    "LoopReport",
    "Outcomes",
    "Refusal",
    "Reporter",
    "RobotAgent",
    "Source",
    "run",
    "stage",
]
