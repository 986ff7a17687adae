"""Where a model's layers go: memory, cost, search and forecast. Pure: no clock, no files, no network."""
