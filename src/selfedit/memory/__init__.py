"""What was learnt, on disk."""
