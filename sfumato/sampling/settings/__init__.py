"""Parts of a request: each a frozen record of one feature's settings, without torch."""
