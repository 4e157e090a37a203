"""The executor written in C: its sources, what calls it, and what proves its bits."""
