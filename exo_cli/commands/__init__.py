"""One thin file a verb: parse, call one package, render. Heavy imports live in the bodies."""
