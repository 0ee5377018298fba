"""World models: how an agent predicts."""
