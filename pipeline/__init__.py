"""Batched offline labelling of robot video with Cosmos3: see README.md for the way through the house."""
