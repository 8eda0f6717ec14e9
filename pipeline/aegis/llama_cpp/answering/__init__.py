"""Answers requests of OpenAI's protocol: each is checked here, and the model runs in a process of its own."""
