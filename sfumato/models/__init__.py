"""Families of models: see the sub-folders, each imports only those before it."""
