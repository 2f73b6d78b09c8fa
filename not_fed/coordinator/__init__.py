"""What runs at the server: rounds, the bank of sealed organs, and the adapter to Flower. Never the site's code."""
