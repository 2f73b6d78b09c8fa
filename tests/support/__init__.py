"""What several tests share: tiny real models, never stand-ins."""
