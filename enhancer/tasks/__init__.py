"""The kinds of training job, by name."""

from enhancer.tasks.context import ContextTask
from enhancer.tasks.denoise import DenoiseTask
from enhancer.tasks.pedal import PedalTask

TASKS: dict[str, type[DenoiseTask] | type[PedalTask] | type[ContextTask]] = {
    "denoise": DenoiseTask,
    "pedal": PedalTask,
    "context": ContextTask,
}
