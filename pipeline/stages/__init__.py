"""The stages of the road as plain callables, and the one file that strings them on Ray Data: the only one with Ray."""
