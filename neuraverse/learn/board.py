"""TensorBoard under the tags of stable-baselines3, so that curves can be laid over each other."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraverse.errors import MissingExtraError

if TYPE_CHECKING:
    from neuraverse.learn.progress import Progress


class Board:
    """A callback for `Trainer` that writes event files.

    Args:
        folder: Where; made if need be.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "tensorboard", "train", "the TensorBoard log") from error
        self._event: Any = Event
        self._summary: Any = Summary
        self._writer: Any = EventFileWriter(str(folder))

    def __call__(self, progress: Progress) -> None:
        """Write what an iteration showed, at its number of environment steps."""
        update = progress.update
        values = {
            "rollout/ep_rew_mean": progress.ep_return,
            "rollout/ep_len_mean": progress.ep_length,
            "rollout/success_rate": progress.success,
            "time/fps": progress.steps_per_s,
            "time/total_timesteps": progress.env_steps,
            "train/approx_kl": update.kl,
            "train/clip_fraction": update.clip_fraction,
            "train/entropy_loss": -update.entropy,
            "train/explained_variance": update.explained_variance,
            "train/learning_rate": update.lr,
            "train/policy_gradient_loss": update.policy_loss,
            "train/std": update.std,
            "train/value_loss": update.value_loss,
            "eval/mean_reward": progress.validation_return,
            "eval/success_rate": None if progress.validation is None else progress.validation.rate,
        }
        kept = [
            self._summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if value is not None and math.isfinite(value)
        ]
        event = self._event(step=progress.env_steps, wall_time=time.time(), summary=self._summary(value=kept))
        self._writer.add_event(event)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
