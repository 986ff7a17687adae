"""What goes over the wire: the generated messages, frames, and mutually authenticated channels."""
