"""What each task says to a stage, for stages that are run without a build."""

from __future__ import annotations

from archiver.pipeline.stages import objective_of
from archiver.tasks import TASKS

OBJECTIVES = {name: objective_of(task) for name, task in TASKS.items()}
