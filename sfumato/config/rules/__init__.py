"""Rules between options: what contradicts what, and what follows from what.

May import `config/run/` and `config/tools/`.
"""
