"""Adapters made from the difference of models or from other adapters."""
