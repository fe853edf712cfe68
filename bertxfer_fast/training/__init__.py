"""The training loop around a distiller."""
