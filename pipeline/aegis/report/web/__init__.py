"""Pages for a browser on this machine: the chat of `aegis serve`, and the live page of a training."""
