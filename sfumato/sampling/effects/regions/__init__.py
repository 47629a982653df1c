"""Regions: parts of an image that each follow a prompt, and an adapter, of their own.

Every layer of a UNet that looks at text asks each sub-prompt, and takes of each answer what lies in its
region; adapters act in theirs alone.
"""
