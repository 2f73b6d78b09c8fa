"""How a sealed file is cut into chunks for the bank; shared by both ends."""
