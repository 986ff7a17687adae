"""serve-shard: one node that announces itself, describes itself and takes work."""
