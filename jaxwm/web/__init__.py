"""The studio in a browser: play in dreams, look at runs, and watch a maze being learned."""
