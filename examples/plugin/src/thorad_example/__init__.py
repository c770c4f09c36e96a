"""A method, a noise and a network for thorad."""
