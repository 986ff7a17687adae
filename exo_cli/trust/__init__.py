"""The cluster key and everything derived from it: authority, leaves, beacon signatures."""
