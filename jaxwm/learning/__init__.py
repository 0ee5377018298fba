"""How every system learns: the gradient step, optimisers, devices that share a step, work in cache-sized pieces."""
