"""Which images meet in which batch, and how a batch is made and loaded ahead.

May import everything else in `data/` but `custom/`.
"""
