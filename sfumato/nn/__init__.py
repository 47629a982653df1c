"""Blocks that two families or more use: attention, number formats, block swap, checkpointing, compilation."""
