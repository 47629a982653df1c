"""A user's own data set class in the place of folders.

May import everything else in `data/`.
"""
