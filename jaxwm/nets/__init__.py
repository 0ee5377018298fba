"""Networks: layers, encoders and decoders."""
