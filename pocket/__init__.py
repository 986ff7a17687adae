"""How pocket, the embedded model, is made: corpus, trainer, exporter, evaluation. Not in the wheel."""
