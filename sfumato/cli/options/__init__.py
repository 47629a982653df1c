"""Options of a script: from a command line and a TOML file to sections, and what they do not do here."""
