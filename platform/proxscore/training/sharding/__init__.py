"""One network over many workers: their meshes, FSDP2 block by block, and initial weights made shard by shard."""
