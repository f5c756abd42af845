"""Who writes self-edits."""
