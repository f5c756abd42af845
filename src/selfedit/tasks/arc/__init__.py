"""Few-shot puzzles: the model picks how it trains itself on a task of the Abstraction and Reasoning Corpus (paper section 4.2)."""
