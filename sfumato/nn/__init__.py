"""Blocks that two families or more use: attention, dtypes, block swap, checkpointing, compilation."""
