"""Options of the scripts of sd-scripts that make images of prompt lines: one topic per file."""
