"""Device profiles: the schema, reading them."""
