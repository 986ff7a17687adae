"""The doctor for the fast link: what the system says, read with care, and what follows from it."""
