"""Paper figures from labelled data; knows nothing of models."""
