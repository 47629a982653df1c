"""One folder for each family, and nothing else; a folder is found by its name.

May import `interface/` and `components/`.
"""
