"""All adapters of one model: which layers get one, how large, how fast it learns, how it is saved and loaded.

May import `layers/` and `files/`.
"""
