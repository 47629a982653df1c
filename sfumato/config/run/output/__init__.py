"""Options about what a run leaves behind: files, figures, previews."""
