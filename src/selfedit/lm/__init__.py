"""Everything that touches torch: models, adapters, training, generation, scoring."""
