"""Noise levels, objectives, samplers."""
