"""One run put together: checks, caches, the loop, its end.

May import everything else in `training/`.
"""
