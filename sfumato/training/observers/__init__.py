"""What watches a run: the bar, trackers, validation, previews, saving.

May import `core/`, `update/` and `trainables/`.
"""
