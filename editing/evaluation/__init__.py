"""How well an edit did: the metrics, free answers, side effects."""
