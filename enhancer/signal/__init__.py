"""Pure tensor maths on waveforms: no configuration, no files, no training. Imports nothing of the project."""
