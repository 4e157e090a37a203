"""Numbers that are functions of the count of steps, and the transform that asks them."""
