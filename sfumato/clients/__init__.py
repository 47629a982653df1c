"""What other programs import of sd-scripts: its `library`, and the parsers and trainers of its scripts.

`names.py` is the table of all of it; everything else is imported when a name is asked for, so that a page
that builds its form of a parser's options never waits for torch.
"""
