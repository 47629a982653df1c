"""What an adapter does to one layer: maths on plain numbers and tensors, one file for each kind.

May import the layers below `adapters/` only.
"""
