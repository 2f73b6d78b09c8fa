"""A site's half of the Flower app: it carries messages to the not_fed that the site installed."""
