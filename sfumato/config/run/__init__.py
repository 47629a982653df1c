"""The options of a run, one section for each topic, in folders by what they are about.

May import `config/checks.py`.
"""
