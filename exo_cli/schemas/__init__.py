"""The data at every boundary: files, JSON on standard output, records that nodes exchange.

Types only. Reading a file, merging two of them or printing them is somebody else's work.
"""
