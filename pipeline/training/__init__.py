"""Training small Cosmos3 checkpoints: the VAE first, then the transformer on its latents.

The model, its masks and its scales are the engine's own; here is only what training adds: windows of a dataset, the two
objectives, and a loop that can be stopped and goes on. Nothing here knows Ray.
"""
