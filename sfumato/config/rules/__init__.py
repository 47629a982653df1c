"""Rules between options, evaluated: what contradicts what, what follows from what, and what has no effect.

May import everything else in `config/` but `public`.
"""
