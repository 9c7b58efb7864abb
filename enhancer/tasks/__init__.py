"""The kinds of training job, by name."""

from enhancer.tasks.denoise import DenoiseTask

TASKS = {"denoise": DenoiseTask}
