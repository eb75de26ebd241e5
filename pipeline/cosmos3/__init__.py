"""The Cosmos3 action engine. Pure PyTorch: imports no Ray, no dataset library and no Parquet."""
