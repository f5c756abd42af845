"""selfedit: a language model that keeps learning by writing its own lessons."""

__version__ = "0.1.0"
