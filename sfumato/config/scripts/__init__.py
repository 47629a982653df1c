"""The rows of the table of scripts: their type, the options that follow from one, and what rows share.

May import `config/run/` and `config/tools/`.
"""
