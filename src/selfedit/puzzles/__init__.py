"""Commands of the puzzle domain: methods side by side, and one puzzle from beginning to end."""
