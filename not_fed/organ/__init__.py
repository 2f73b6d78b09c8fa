"""What an organ is: a span of a decoder-only model's layers, cut out, trained in place, put back."""
