"""What several tests need: checkpoints, servers, processes."""
