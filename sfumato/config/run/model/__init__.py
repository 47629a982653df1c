"""Options about the model: its files, what is learned, number formats, memory."""
