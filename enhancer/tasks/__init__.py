"""The kinds of training job, by name."""

from enhancer.tasks.codec import CodecTask
from enhancer.tasks.context import ContextTask
from enhancer.tasks.denoise import DenoiseTask
from enhancer.tasks.enhance import EnhanceTask
from enhancer.tasks.pedal import PedalTask
from enhancer.tasks.pitch import PitchTask
from enhancer.tasks.restore import RestoreTask
from enhancer.tasks.string import StringTask

TASKS: dict[
    str,
    type[DenoiseTask]
    | type[PedalTask]
    | type[ContextTask]
    | type[StringTask]
    | type[PitchTask]
    | type[CodecTask]
    | type[EnhanceTask]
    | type[RestoreTask],
] = {
    "denoise": DenoiseTask,
    "pedal": PedalTask,
    "context": ContextTask,
    "string": StringTask,
    "pitch": PitchTask,
    "codec": CodecTask,
    "enhance": EnhanceTask,
    "restore": RestoreTask,
}
