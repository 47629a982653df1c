"""Kinds of adapters that are read from files and not trained here, each a formula over a file's tensors."""
