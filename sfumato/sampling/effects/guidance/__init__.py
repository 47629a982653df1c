"""Guidance by another network, which looks at what a step points to: sampling follows a loss downhill."""
