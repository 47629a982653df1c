"""What a data set or a file holds, and what is wrong with it."""
