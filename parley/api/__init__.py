"""The HTTP side: admission, validation, routes, SSE framing, errors."""
