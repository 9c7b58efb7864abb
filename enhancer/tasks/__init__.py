"""The kinds of training job, by name."""

from enhancer.tasks.denoise import DenoiseTask
from enhancer.tasks.pedal import PedalTask

TASKS: dict[str, type[DenoiseTask] | type[PedalTask]] = {"denoise": DenoiseTask, "pedal": PedalTask}
