"""Caption files, and what becomes of a caption in one step.

May import `images/`.
"""
