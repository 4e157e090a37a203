"""What is private to torch, each under a plain name, with what stands for it where it is missing.

No other file uses such names. They are found by what is there, never by the version; without one,
torch is asked in a slower way, or a feature is refused, and no number changes.
"""
