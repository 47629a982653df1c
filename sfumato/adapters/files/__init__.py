"""Adapter files: the tensors in them, their names in every program, and what they tell without a model.

May import `layers/`.
"""
