"""What data looks like: pure functions from schemas to Rich renderables, rows and SVG. No I/O."""
