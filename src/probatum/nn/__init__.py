"""Layers and model surgery that two or more families use."""
