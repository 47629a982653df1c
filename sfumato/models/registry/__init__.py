"""Which families there are, and which one a file or a name belongs to.

May import everything else in `models/`.
"""
