"""What tools/start.py does, standard library only: preflight, environment, constraints, commands."""
