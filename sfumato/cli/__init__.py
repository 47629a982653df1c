"""The command line: options from sections, the table of scripts, what each command does."""
