"""Quality measures that two or more families use."""
