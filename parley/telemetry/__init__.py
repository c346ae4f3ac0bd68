"""What the service tells of itself: one record a request, and small sinks of it for metrics, logs and traces."""
