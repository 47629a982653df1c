"""Arithmetic of a run: its course, its processes, its dtypes, the figures of a step.

May import nothing else in `training/`.
"""
