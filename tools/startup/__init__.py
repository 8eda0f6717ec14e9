"""What tools/start.py does, standard library only: uv does the set-up; here is what uv cannot do or know."""
