"""What exists only for the scripts of sd-scripts that make images of prompt lines."""
