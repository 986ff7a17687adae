"""Models as files and figures: directories, safetensors headers, names. No tensor library in here."""
