"""Differentiating through training: loops of steps, and solutions."""
