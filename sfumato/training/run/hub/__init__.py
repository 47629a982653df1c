"""What a run has to do with the Hub: where results go, the card, the state that it goes on from."""
