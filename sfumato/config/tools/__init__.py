"""The options of the tools that rework files and prepare data.

May import `config/run/`.
"""
