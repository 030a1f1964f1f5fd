"""Raw datasets to shards; teacher weights to disk; embeddings to shards."""
