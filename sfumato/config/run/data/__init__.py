"""Options about the data set: where it is, how images and captions vary, what is cached."""
