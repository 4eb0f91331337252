"""Everything that a person or a foreign file can get wrong, with the whole answer to it."""
