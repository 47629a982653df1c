"""New words: vectors of their own for text encoders that stay as they are, and the files that hold them.

May import `files/`.
"""
