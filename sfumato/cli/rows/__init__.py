"""The rows of the table of scripts, by what they do."""
