"""What file names say about notes."""

from __future__ import annotations

import pytest

from data_shards.note_names import read_name

A4 = 440.0
SEMITONE = 2 ** (1 / 12)


@pytest.mark.parametrize(
    ("stem", "f0_hz", "velocity", "layer", "rest"),
    [
        ("a2_f", 110.0, 0.8, None, ""),
        ("eb3_p", A4 * SEMITONE**-18, 0.3, None, ""),
        ("gb4", A4 * SEMITONE**-3, None, None, ""),
        ("c#4", A4 * SEMITONE**-8, None, None, ""),
        ("Cs4", A4 * SEMITONE**-8, None, None, ""),
        ("twang_a3_f_rr1", 220.0, 0.8, None, "twang"),
        ("blackbaritone-ab4_f", A4 * SEMITONE**-1, 0.8, None, "blackbaritone"),
        ("a1_vl3_rr1", 55.0, None, 3, ""),
        ("meatbass-a1_pizz", 55.0, None, None, "meatbass_pizz"),
        ("note069_vel127", 440.0, 1.0, None, ""),
        ("strat 057 mf", 220.0, 0.6, None, "strat"),
        ("e1-string6-e2", A4 * SEMITONE**-29, None, None, "e1_string6"),
        ("f", None, 0.8, None, ""),
        ("b3", A4 * SEMITONE**-10, None, None, ""),
        ("take_7", None, None, None, "take_7"),
        ("c-1", None, None, None, "c_1"),
    ],
)
def test_a_name_says_pitch_and_velocity(stem, f0_hz, velocity, layer, rest):
    name = read_name(stem)
    assert name.f0_hz == (None if f0_hz is None else pytest.approx(f0_hz, rel=1e-4))
    assert (name.velocity, name.layer, name.rest) == (velocity, layer, rest)


def test_velocities_and_round_robins_of_one_pitch_are_one_group():
    groups = {
        read_name(stem).group("guitar") for stem in ("emily-c4_f_rr1", "emily-c4_p_rr2", "emily-c4_vel20")
    }
    assert len(groups) == 1
    assert read_name("emily-d4_f").group("guitar") not in groups
    assert read_name("other-c4_f").group("guitar") not in groups
    assert read_name("emily-c4_f").group("bass") not in groups
