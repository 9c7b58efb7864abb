"""What is known of pitch shifters wherever they are spoken of: their names, and how far they shift."""

from __future__ import annotations

ENGINES = ("signalsmith", "rubberband", "parselmouth", "phase_vocoder", "varispeed")
"""In an order that stays: rows of validation carry an engine as its place here."""
MOST_SEMITONES = 24
