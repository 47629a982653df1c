"""The seam: what a family of models must be able to do, and the values that pass through it.

May import nothing else in `models/`.
"""
