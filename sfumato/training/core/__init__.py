"""Arithmetic of a run: its course, its processes, its number formats, the figures of a step.

May import nothing else in `training/`.
"""
