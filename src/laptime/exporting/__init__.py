"""A trained network as a file for elsewhere, checked against the original."""
