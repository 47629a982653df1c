"""Which tensors of an adapter file other programs load, a module for each program.

Programs skip what they do not know, some with a line in a log, some without a word, and some refuse the whole
file. The rules were found by loading files with the programs, or read off what they do.
"""
