"""Ways to act: actor-critic for now; planning, search and evolution live here too."""
