"""What can be wrong with a corpus, as two typed errors.

`CorpusError` is the user's to mend before anything starts (wrong folder, other rate, unfinished build).
`DataError` is damage met while reading, and says where: shard, member, byte offset and, once a schedule asked
for the sample, the draw and the rank.
"""

from __future__ import annotations

from hparams.errors import UserError


class CorpusError(UserError):
    """A corpus is missing, empty, of another kind or rate, or does not fit its own index."""


class DataError(ValueError):
    """Damage in a shard. The text names every place that is known.

    Args:
        problem: what was found and what was needed.
        shard: name of the tar.
        member: name of the member inside it.
        offset: byte in the tar where the damage starts.
        draw: training example that asked for the sample.
        rank: rank that asked for it.
    """

    def __init__(
        self,
        problem: str,
        *,
        shard: str | None = None,
        member: str | None = None,
        offset: int | None = None,
        draw: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.problem = problem
        self.shard = shard
        self.member = member
        self.offset = offset
        self.draw = draw
        self.rank = rank
        named = [
            ("shard", shard),
            ("member", member),
            ("byte", offset),
            ("draw", draw),
            ("rank", rank),
        ]
        place = ", ".join(f"{name} {value}" for name, value in named if value is not None)
        super().__init__(f"{place}: {problem}" if place else problem)

    def at(self, *, draw: int | None = None, rank: int | None = None) -> DataError:
        """The same damage, with the draw and the rank that met it."""
        return DataError(
            self.problem,
            shard=self.shard,
            member=self.member,
            offset=self.offset,
            draw=self.draw if draw is None else draw,
            rank=self.rank if rank is None else rank,
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only places are lost by the default, and loader workers send this error by pickle.
        places = (self.shard, self.member, self.offset, self.draw, self.rank)
        return _restore, (self.problem, *places)


def _restore(
    problem: str,
    shard: str | None,
    member: str | None,
    offset: int | None,
    draw: int | None,
    rank: int | None,
) -> DataError:
    return DataError(problem, shard=shard, member=member, offset=offset, draw=draw, rank=rank)
