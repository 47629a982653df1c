"""Options about the model: its files, what is learned, dtypes, memory."""
