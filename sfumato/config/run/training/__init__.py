"""Options about learning: how long, how fast, from which noise, by which loss."""
