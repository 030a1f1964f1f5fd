"""Shards, their order, decoding, augmentation, and the data module over them."""
