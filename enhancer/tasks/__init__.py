"""The kinds of training job, by name."""

from enhancer.tasks.denoise import DenoiseTask
from enhancer.tasks.pedal import PedalTask

TASKS = {"denoise": DenoiseTask, "pedal": PedalTask}
