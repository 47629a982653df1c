"""What changes one batch's sampling: each effect enters before it, and leaves no trace after it."""
