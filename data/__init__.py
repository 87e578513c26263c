"""What comes in: assemblies, regions, the universe, token sets, and the readers that make them."""
