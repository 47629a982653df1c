"""All that an interrupted run needs to go on, and what files record of it.

May import the folders before it.
"""
