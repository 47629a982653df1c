"""Guidance by another network, which looks at what a step points to: sampling follows a loss downhill.

For programs: no option of a script asks for it yet, for want of the networks that look.
"""
