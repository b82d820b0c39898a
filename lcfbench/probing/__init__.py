"""One page that answers whether a cache channel is worth it for a pair of models and a task."""
