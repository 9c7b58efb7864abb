"""One training example of a task that restores recordings: a mix, and what has happened to it."""

from __future__ import annotations

from data_shards import damages
from data_shards.damages import KINDS, DamageSettings, draw_damage
from data_shards.mix import NUMBERS, Example, MixRecipe, Rows
from data_shards.schedule import generator

BACKGROUND, ROOM, SEVERAL, CLEAN = "background", "room", "several", "clean"


class DamagedRecipe(MixRecipe):
    """A `MixRecipe` whose examples have a damage of `data_shards.damages` instead of distortions.

    On the validation list each kind that is drawn at all has its turn alone, so that it can be said which one is
    repaired; clean items, backgrounds, recorded rooms and mixes of everything take turns with them.
    """

    numbers = NUMBERS | damages.NUMBERS | {"has_bg": "bool"}

    @property
    def damage(self) -> DamageSettings:
        """What is drawn."""
        assert self.settings.damage is not None
        return self.settings.damage

    def valid_turns(self) -> tuple[str, ...]:
        """What happens to one item of the validation list after another, over and over."""
        kinds = [kind for kind in KINDS if getattr(self.damage, f"{kind}_prob") > 0]
        surroundings = [BACKGROUND] * ("bg" in self.sources) + [ROOM] * ("rir" in self.sources)
        return (CLEAN, *kinds, *surroundings, *[SEVERAL] * (len(kinds) > 1))

    def _mixture(self, draw: int, number: int) -> Example:
        example = super()._mixture(draw, number)
        drawn = self._uniforms(self.settings.seed, draw, "damage")
        has_room = bool(example["rir"] != -1)
        kinds = () if self._is_clean(draw) else self.damage.kinds_on(drawn, has_room)
        damage = draw_damage(self.damage, kinds, drawn, self.settings.rate_hz)
        return {**example, **damage, "has_bg": self._surroundings(draw)[0]}

    def _is_clean(self, draw: int) -> bool:
        return generator(self.settings.seed, draw, "clean").random() < self.damage.clean_prob

    def _surroundings(self, draw: int) -> tuple[bool, bool]:
        if self.settings.load_fg_only or self._is_clean(draw):
            return False, False
        has_bg = generator(self.settings.seed, draw, "bg on").random() < self.damage.bg_prob
        return has_bg, "rir" in self.sources

    def _valid_mixture(self, item: int, number: int) -> tuple[Example, Rows]:
        example, chosen, _ = self._valid_foreground(item, number)
        turns = self.valid_turns()
        turn = turns[number % len(turns)]
        drawn = self._uniforms(self.settings.valid_seed, item, "valid damage")
        kinds: tuple[str, ...] = (turn,) if turn in KINDS else ()
        if turn in (ROOM, SEVERAL) and "rir" in self.sources:
            example["rir"] = chosen["rir"] = self._valid_row("rir", number // len(turns))[0]
        if turn == SEVERAL:
            kinds = self.damage.kinds_on(drawn, has_room="rir" in self.sources)
        has_bg = turn == BACKGROUND or (turn == SEVERAL and "bg" in self.sources)
        if has_bg:
            self._add_valid_background(item, number // len(turns), example, chosen)
        damage = draw_damage(self.damage, kinds, drawn, self.settings.rate_hz)
        return {**example, **damage, "has_bg": has_bg}, chosen

    @staticmethod
    def _uniforms(seed: int, number: int, stream: str) -> list[float]:
        return generator(seed, number, stream).random(damages.NUM_UNIFORMS).tolist()
